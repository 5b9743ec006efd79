{{/* What all pods have in common. */}}

{{- define "lckv.podSecurity" -}}
runAsNonRoot: true
runAsUser: 65532
runAsGroup: 65532
seccompProfile: {type: RuntimeDefault}
{{- end -}}

{{- define "lckv.containerSecurity" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities: {drop: [ALL]}
{{- end -}}

{{/* The end of a log is in the pod's status, where `kubectl describe` shows it, and events of its owner may. */}}
{{- define "lckv.lastLine" -}}
terminationMessagePolicy: FallbackToLogsOnError
{{- end -}}

{{/* The variables of Service links, LCKV_PORT among them, would be read as flags. */}}
{{- define "lckv.podBasics" -}}
automountServiceAccountToken: false
enableServiceLinks: false
serviceAccountName: {{ include "lckv.serviceAccount" .root }}
{{- with .root.Values.images.pullSecrets }}
imagePullSecrets:
  {{- range . }}
  - name: {{ . }}
  {{- end }}
{{- end }}
securityContext:
  {{- include "lckv.podSecurity" . | nindent 2 }}
  {{- with (.model | default dict).fsGroup }}
  fsGroup: {{ int . }}
  {{- /* A model's files are many and large: they are not gone through at every start. */}}
  fsGroupChangePolicy: OnRootMismatch
  {{- end }}
{{- end -}}

{{/* A user's labels, none of which may stand for one that pods are selected by: (dict "labels" LABELS "at" VALUE). */}}
{{- define "lckv.podLabels" -}}
{{- range $name, $_ := .labels -}}
{{- if has $name (list "app.kubernetes.io/name" "app.kubernetes.io/instance" "app.kubernetes.io/component" "lckv/model") -}}
{{- fail (printf "%s.podLabels: pods are selected by %s: give another label" $.at $name) -}}
{{- end -}}
{{- end -}}
{{- with .labels }}{{ toYaml . }}{{ end -}}
{{- end -}}

{{- define "lckv.placement" -}}
{{- with .priorityClassName }}
priorityClassName: {{ . }}
{{- end }}
{{- with .nodeSelector }}
nodeSelector:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .affinity }}
affinity:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end -}}

{{/* Over hosts and zones, as far as there are some: (dict "labels" SELECTOR). */}}
{{- define "lckv.spread" -}}
topologySpreadConstraints:
  {{- range $key := list "kubernetes.io/hostname" "topology.kubernetes.io/zone" }}
  - maxSkew: 1
    topologyKey: {{ $key }}
    whenUnsatisfiable: ScheduleAnyway
    labelSelector:
      matchLabels:
        {{- $.labels | nindent 8 }}
  {{- end }}
{{- end -}}

{{/* `ends`: whether a container that fails it is ended. That one does not answer, so it does not drain either, and the
     pod's grace period would keep it from being started again; its streams go on elsewhere meanwhile. 10 s are for last
     log lines. */}}
{{- define "lckv.probe" -}}
grpc: {port: {{ .port }}, service: {{ .service }}}
periodSeconds: {{ .period }}
timeoutSeconds: 5
failureThreshold: {{ .failures }}
{{- if .ends }}
terminationGracePeriodSeconds: 10
{{- end }}
{{- end -}}

{{/* After SIGTERM the router accepts for the delay and streams for the grace; then it has 3 s for last statuses and up
     to 30 s to close sessions (router/router.cc). */}}
{{- define "lckv.routerGrace" -}}
{{ add (int .Values.router.shutdownDelaySeconds) (int .Values.router.shutdownGraceSeconds) 35 }}
{{- end -}}

{{/* How long a call waits for the first replica of its model, where that may have none: calls that do not wait would never
     be seen by what scales it. A minute and a half is for being seen, and for a pod to be scheduled. Empty: none may. */}}
{{- define "lckv.readyWait" -}}
{{- $seconds := 0 -}}
{{- range include "lckv.models" . | fromYaml -}}
{{- if and (eq .autoscaling.by "keda") (eq (int .autoscaling.minReplicas) 0) -}}
{{- $seconds = max $seconds (add (include "lckv.startSeconds" . | int) 90) -}}
{{- if regexMatch "^0+[a-z]*$" (dig "max-ready-wait" "1s" $.Values.router.flags | toString) -}}
{{- fail (printf "models.%s.autoscaling.minReplicas 0: router.flags.max-ready-wait must not be 0, or no call waits for a first replica" .key) -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- if $seconds -}}{{ $seconds }}{{- end -}}
{{- end -}}

{{/* After the drain the launcher gives its ranks 20 s, and the kernel 10 s to end them (worker/launch.cc). */}}
{{- define "lckv.workerGrace" -}}
{{ add (int .drainTimeoutSeconds) 32 }}
{{- end -}}

{{/* Where each secret with certificates is from. */}}
{{- define "lckv.clientsSecret" -}}
{{ ternary (printf "%s-tls" (include "lckv.router" .)) .Values.tls.clients.secret (eq .Values.tls.clients.by "certManager") }}
{{- end -}}
{{- define "lckv.routerSecret" -}}
{{ ternary (printf "%s-worker-tls" (include "lckv.router" .)) .Values.tls.workers.routerSecret (eq .Values.tls.workers.by "certManager") }}
{{- end -}}
{{- define "lckv.workerSecret" -}}
{{ ternary (printf "%s-worker-tls" (include "lckv.fullname" .)) .Values.tls.workers.workerSecret (eq .Values.tls.workers.by "certManager") }}
{{- end -}}
{{- define "lckv.workerServerName" -}}
{{ ternary (printf "%s-worker" (include "lckv.fullname" .)) .Values.tls.workers.serverName (eq .Values.tls.workers.by "certManager") }}
{{- end -}}
