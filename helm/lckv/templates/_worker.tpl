{{/* One host's pod of a replica: (dict "root" $ "model" MODEL "leads" whether rank 0 is in it). */}}

{{- define "lckv.workerArgs" -}}
{{- $values := .root.Values -}}
{{- $model := .model -}}
- --model=/model{{ with (get $model.source (keys $model.source | first)).folder }}/{{ . }}{{ end }}
- {{ printf "--served-model-name=%s" $model.servedName | quote }}
- --device={{ $model.device }}
- --tensor-parallel-size={{ int $model.tensorParallelSize }}
- "--host={{ $values.listenAddress }}"
- --port=50061
- --metrics-port=9091
- --health-port=50062
{{- if include "lckv.hasRankMetrics" $model }}
- --rank-metrics-port=9100
{{- end }}
- --start-timeout={{ include "lckv.gatherSeconds" $model }}s
- --drain-timeout={{ int $model.drainTimeoutSeconds }}s
- --log-level={{ $values.log.level }}
- --log-format={{ $values.log.format }}
{{- $cpus := dig "limits" "cpu" "" $model.resources }}
{{- if and (eq $model.device "cpu") $cpus (not (hasKey $model.flags "threads")) }}
- --threads={{ max 1 (div (include "lckv.wholeCpus" $cpus | int) (int $model.ranksPerHost)) }}
{{- end }}
{{- if ne $values.tls.workers.by "none" }}
- --tls-cert=/tls/tls.crt
- --tls-key=/tls/tls.key
- --tls-client-ca=/tls/ca.crt
{{- end }}
{{- if $values.tls.ranks }}
- --rank-tls-ca=/tls/ca.crt
- --rank-tls-cert=/tls/tls.crt
- --rank-tls-key=/tls/tls.key
- --rank-tls-server-name={{ include "lckv.workerServerName" .root }}
{{- end }}
{{- if or (eq $values.tls.workers.by "none") (gt (int $model.hosts) 1) }}
- --allow-plaintext
{{- end }}
{{- include "lckv.flags" $model.flags }}
{{- end -}}

{{- define "lckv.hasRankMetrics" -}}
{{- if and (gt (int .tensorParallelSize) 1) (ne .device "sim") }}yes{{ end -}}
{{- end -}}

{{/* The metrics port of each rank that may be in this pod, rank 0 aside. Which of a LeaderWorkerSet's followers a pod is
     shows only at run time; the PodMonitor asks each pod for its own. */}}
{{- define "lckv.rankPorts" -}}
{{- if include "lckv.hasRankMetrics" .model }}
{{- $share := int .model.ranksPerHost }}
{{- range $rank := untilStep (ternary 1 $share .leads) (ternary $share (int .model.tensorParallelSize) .leads) 1 }}
- {name: rank-{{ $rank }}, containerPort: {{ add 9100 $rank }}}
{{- end }}
{{- end }}
{{- end -}}

{{- define "lckv.workerResources" -}}
{{- $resources := deepCopy .resources -}}
{{- if eq .device "cuda" -}}
{{- $limits := $resources.limits | default dict -}}
{{- $_ := set $limits .gpuResource (int .ranksPerHost) -}}
{{- $_ := set $resources "limits" $limits -}}
{{- end -}}
{{- toYaml $resources -}}
{{- end -}}

{{- define "lckv.workerPod" -}}
{{- $values := .root.Values -}}
{{- $model := .model -}}
{{- $tls := ne $values.tls.workers.by "none" -}}
metadata:
  labels:
    {{- include "lckv.selector" (dict "root" .root "component" "worker" "model" $model.key) | nindent 4 }}
    {{- include "lckv.podLabels" (dict "labels" $model.podLabels "at" (printf "models.%s" $model.key)) | nindent 4 }}
  annotations:
    kubectl.kubernetes.io/default-container: worker
    {{- with $model.podAnnotations }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
spec:
  {{- include "lckv.podBasics" . | nindent 2 }}
  terminationGracePeriodSeconds: {{ include "lckv.workerGrace" $model }}
  {{- with $model.runtimeClassName }}
  runtimeClassName: {{ . }}
  {{- end }}
  {{- include "lckv.placement" $model | nindent 2 }}
  {{- if or $model.tolerations (eq $model.device "cuda") }}
  tolerations:
    {{- if eq $model.device "cuda" }}
    - {key: nvidia.com/gpu, operator: Exists, effect: NoSchedule}
    {{- end }}
    {{- with $model.tolerations }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
  {{- end }}
  {{- if .leads }}
  {{- include "lckv.spread" (dict "labels" (include "lckv.leaders" .)) | nindent 2 }}
  {{- end }}
  {{- with $model.source.init }}
  initContainers:
    - name: model
      image: {{ .image | quote }}
      imagePullPolicy: {{ $values.images.pullPolicy }}
      {{- include "lckv.lastLine" . | nindent 6 }}
      {{- with pick . "command" "args" "env" "envFrom" "resources" }}
      {{- toYaml . | nindent 6 }}
      {{- end }}
      securityContext:
        {{- include "lckv.containerSecurity" . | nindent 8 }}
      volumeMounts:
        - {name: model, mountPath: /model}
        - {name: tmp, mountPath: /tmp}
  {{- end }}
  containers:
    - name: worker
      {{- $image := ternary $values.images.workerCuda $values.images.workerCpu (eq $model.device "cuda") }}
      image: {{ include "lckv.image" (dict "root" .root "image" $image) | quote }}
      imagePullPolicy: {{ $values.images.pullPolicy }}
      {{- include "lckv.lastLine" . | nindent 6 }}
      args:
        {{- include "lckv.workerArgs" . | nindent 8 }}
      {{- with $model.env }}
      env:
        {{- range $name, $value := . }}
        - {name: {{ $name }}, value: {{ $value | quote }}}
        {{- end }}
      {{- end }}
      ports:
        {{- if .leads }}
        - {name: grpc, containerPort: 50061}
        - {name: metrics, containerPort: 9091}
        - {name: health, containerPort: 50062}
        {{- end }}
        {{- include "lckv.rankPorts" . | nindent 8 }}
      {{- /* Only rank 0 has a health port; a launcher ends with its ranks. */}}
      {{- if .leads }}
      startupProbe:
        {{- $failures := include "lckv.startFailures" $model }}
        {{- include "lckv.probe" (dict "port" 50062 "service" "readiness" "period" 5 "failures" $failures "ends" true) | nindent 8 }}
      livenessProbe:
        {{- include "lckv.probe" (dict "port" 50062 "service" "liveness" "period" 10 "failures" 3 "ends" true) | nindent 8 }}
      readinessProbe:
        {{- include "lckv.probe" (dict "port" 50062 "service" "readiness" "period" 5 "failures" 1) | nindent 8 }}
      {{- end }}
      resources:
        {{- include "lckv.workerResources" $model | nindent 8 }}
      securityContext:
        {{- include "lckv.containerSecurity" . | nindent 8 }}
      volumeMounts:
        - {name: model, mountPath: /model, readOnly: true}
        {{- if gt (int $model.ranksPerHost) 1 }}
        - {name: shm, mountPath: /dev/shm}
        {{- end }}
        {{- if $tls }}
        - {name: tls, mountPath: /tls, readOnly: true}
        {{- end }}
  volumes:
    - name: model
      {{- with $model.source.pvc }}
      persistentVolumeClaim: {claimName: {{ .claimName }}, readOnly: true}
      {{- end }}
      {{- with $model.source.hostPath }}
      hostPath: {path: {{ .path | quote }}, type: Directory}
      {{- end }}
      {{- with $model.source.init }}
      emptyDir: { {{- with .sizeLimit }}sizeLimit: {{ . }}{{ end -}} }
    - name: tmp
      emptyDir: {}
      {{- end }}
    {{- if gt (int $model.ranksPerHost) 1 }}
    - name: shm
      emptyDir: {medium: Memory, sizeLimit: {{ $model.shmSize }}}
    {{- end }}
    {{- if $tls }}
    - name: tls
      secret: {secretName: {{ include "lckv.workerSecret" .root }}}
    {{- end }}
{{- end -}}
