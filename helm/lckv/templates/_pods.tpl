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

{{/* Whole seconds of a duration such as 1h30m or 1.5s. */}}
{{- define "lckv.seconds" -}}
{{- $units := dict "ns" 1e-9 "us" 1e-6 "ms" 1e-3 "s" 1.0 "m" 60.0 "h" 3600.0 -}}
{{- $seconds := 0.0 -}}
{{- range $part := regexFindAll "[0-9.]+[a-z]+" (toString .) -1 -}}
{{- $number := regexFind "^[0-9.]+" $part -}}
{{- $seconds = addf $seconds (mulf (float64 $number) (get $units (trimPrefix $number $part))) -}}
{{- end -}}
{{ floor $seconds | int64 }}
{{- end -}}

{{/* How long a call waits at most for a first replica of a model that may have none. A minute and a half is for being
     seen by what scales it, and for a pod to be scheduled. 0: the model always has one. */}}
{{- define "lckv.firstReplicaSeconds" -}}
{{- $fromZero := and (eq .autoscaling.by "keda") (eq (int .autoscaling.minReplicas) 0) -}}
{{ ternary (add (include "lckv.startSeconds" . | int) 90) 0 $fromZero }}
{{- end -}}

{{/* The routers' flags, by name, that say how long calls wait while their model has no replica. Where a model may have
     none, calls that do not wait would never be seen by what scales it, and the second flag bounds the first. Elsewhere
     a new router has its calls wait until it has sessions. */}}
{{- define "lckv.waits" -}}
{{- $seconds := 0 -}}
{{- range $model := include "lckv.models" . | fromYaml -}}
{{- $needed := include "lckv.firstReplicaSeconds" $model | int -}}
{{- $seconds = max $seconds $needed -}}
{{- range $name := list "max-ready-wait" "max-queue-wait" -}}
{{- with get $.Values.router.flags $name -}}
{{- $start := sub $needed 90 -}}
{{- if lt (include "lckv.seconds" . | int64) $start -}}
{{- $what := printf "a first replica may take %d s, but router.flags.%s is %s" $start $name . -}}
{{- fail (printf "models.%s.autoscaling.minReplicas 0: %s: give more, or leave it to the chart" $model.key $what) -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- end -}}
max-ready-wait: {{ max $seconds 10 }}s
{{- if $seconds }}
max-queue-wait: {{ $seconds }}s
{{- end }}
{{- end -}}

{{/* The deadline of a model's generation in `helm test`: (dict "root" $ "model" MODEL). */}}
{{- define "lckv.testSeconds" -}}
{{ add (int .root.Values.test.timeoutSeconds) (include "lckv.firstReplicaSeconds" .model | int) }}
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
