{{/* The models with their defaults filled in and what follows from them, by key, as YAML. */}}
{{- define "lckv.models" -}}
{{- $root := . -}}
{{- $models := dict -}}
{{- $served := dict -}}
{{- if not .Values.models -}}
{{- fail "models is empty: name at least one, as in models.llama.source.pvc.claimName=checkpoints" -}}
{{- end -}}
{{- range $key, $given := .Values.models -}}
{{- $model := mergeOverwrite (deepCopy $root.Values.modelDefaults) (deepCopy ($given | default dict)) -}}
{{- $_ := set $model "key" $key -}}
{{- $_ := set $model "servedName" ($model.servedName | default $key) -}}
{{- $_ := set $model "workload" (printf "%s-worker-%s" (include "lckv.fullname" $root) $key) -}}
{{- $_ := set $model "leaders" (printf "%s-leaders" $model.workload) -}}
{{- $_ := set $model "maxReplicas" (ternary $model.replicas $model.autoscaling.maxReplicas (eq $model.autoscaling.by "none")) -}}
{{- include "lckv.checkModel" $model -}}
{{- $_ := set $model "ranksPerHost" (div (int $model.tensorParallelSize) (max 1 (int $model.hosts))) -}}
{{- $_ := set $model "kind" (ternary "LeaderWorkerSet" "Deployment" (gt (int $model.hosts) 1)) -}}
{{- $_ := set $model "apiVersion" (ternary "leaderworkerset.x-k8s.io/v1" "apps/v1" (gt (int $model.hosts) 1)) -}}
{{- if hasKey $served $model.servedName -}}
{{- fail (printf "models.%s and models.%s have one servedName, %q" $key (get $served $model.servedName) $model.servedName) -}}
{{- end -}}
{{- $_ := set $served $model.servedName $key -}}
{{- $_ := set $models $key $model -}}
{{- end -}}
{{- include "lckv.checkKeys" $models -}}
{{- toYaml $models -}}
{{- end -}}

{{/* Of two keys, one with a suffix to the other, some would give one name to two objects: the chart's own, or those that
     LeaderWorkerSet makes of a model NAME, which are the Service NAME and StatefulSets NAME-0, NAME-1 and so on. */}}
{{- define "lckv.checkKeys" -}}
{{- range $long, $longer := . -}}
{{- range $short, $shorter := $ -}}
{{- if hasPrefix (printf "%s-" $short) $long -}}
{{- $suffix := trimPrefix (printf "%s-" $short) $long -}}
{{- $meeting := "" -}}
{{- if and (gt (int $shorter.hosts) 1) (regexMatch "^ranks-(0|[1-9][0-9]*)$" $suffix) -}}
{{- $meeting = "a NetworkPolicy" -}}
{{- else if and (gt (int $longer.hosts) 1) (eq $suffix "leaders") -}}
{{- $meeting = "a Service" -}}
{{- else if and (gt (int $shorter.hosts) 1) (gt (int $longer.hosts) 1) (regexMatch "^(0|[1-9][0-9]*)$" $suffix) -}}
{{- $meeting = "a StatefulSet" -}}
{{- end -}}
{{- with $meeting -}}
{{- fail (printf "models.%s and models.%s would each have %s named %s: give one of them another key" $short $long . $longer.workload) -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{/* What the schema cannot tell, because it follows from several values, defaults among them. */}}
{{- define "lckv.checkModel" -}}
{{- $size := int .tensorParallelSize -}}
{{- $at := printf "models.%s" .key -}}
{{- if ne (len .source) 1 -}}
{{- fail (printf "%s.source: give exactly one of pvc, hostPath and init, not %d (modelDefaults.source counts too)" $at (len .source)) -}}
{{- end -}}
{{- if mod $size (int .hosts) -}}
{{- fail (printf "%s: tensorParallelSize %d cannot be shared out to %d hosts in equal parts" $at $size (int .hosts)) -}}
{{- end -}}
{{- if gt (int .hosts) 1 -}}
{{- /* The StatefulSet of the last group, whose name is in a label of its pods, with a dash and ten characters more. */ -}}
{{- $last := printf "%s-%d" .workload (max 0 (sub (int .maxReplicas) 1)) -}}
{{- if gt (len $last) 52 -}}
{{- fail (printf "%s: its last group's name %q has more than 52 characters: give a shorter key, a shorter fullnameOverride, or fewer replicas" $at $last) -}}
{{- end -}}
{{- end -}}
{{- if and (eq .device "sim") (gt (int .hosts) 1) -}}
{{- fail (printf "%s: device sim has all ranks of a replica in one process: hosts must be 1" $at) -}}
{{- end -}}
{{- range $name, $_ := .env -}}
{{- if hasPrefix "LCKV_" $name -}}
{{- fail (printf "%s.env: %s would be read as a flag: give it in flags" $at $name) -}}
{{- end -}}
{{- end -}}
{{- if and .exclusiveTopology (lt (int .hosts) 2) -}}
{{- fail (printf "%s: exclusiveTopology is for replicas of several hosts: hosts is %d" $at (int .hosts)) -}}
{{- end -}}
{{- if and (eq .device "cuda") (gt $size 1) (contains "/mig-" .gpuResource) -}}
{{- fail (printf "%s: %s cannot exchange with another one: tensorParallelSize must be 1" $at .gpuResource) -}}
{{- end -}}
{{- if eq .device "cuda" -}}
{{- range $part, $given := .resources -}}
{{- $ranks := div $size (int $.hosts) | toString -}}
{{- $asked := dig $.gpuResource $ranks ($given | default dict) | toString -}}
{{- if ne $asked $ranks -}}
{{- $what := printf "%s is %s, but a pod has %s rank(s), each with one" $.gpuResource $asked $ranks -}}
{{- fail (printf "%s.resources.%s: %s: leave it to the chart" $at $part $what) -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- if and (ne .autoscaling.by "none") (gt (int .autoscaling.minReplicas) (int .autoscaling.maxReplicas)) -}}
{{- fail (printf "%s.autoscaling: minReplicas %d exceeds maxReplicas %d" $at (int .autoscaling.minReplicas) (int .autoscaling.maxReplicas)) -}}
{{- end -}}
{{- if and (eq .autoscaling.by "hpa") (lt (int .autoscaling.minReplicas) 1) -}}
{{- fail (printf "%s.autoscaling: minReplicas 0 needs keda" $at) -}}
{{- end -}}
{{- end -}}

{{/* That an init container may take. */}}
{{- define "lckv.fetchSeconds" -}}
{{- $seconds := 0 -}}
{{- with .source.init }}{{ $seconds = .timeoutSeconds | default 1800 }}{{ end -}}
{{ int $seconds }}
{{- end -}}

{{/* From a leader's start until all its ranks are loaded and connected. Ranks of other hosts may have begun to fetch the
     model when the leader's host already had it. */}}
{{- define "lckv.gatherSeconds" -}}
{{ add (int .startTimeoutSeconds) (ternary (include "lckv.fetchSeconds" . | int) 0 (gt (int .hosts) 1)) }}
{{- end -}}

{{/* From a pod's start to a ready replica at the most: an init container's time and the startup probe's. */}}
{{- define "lckv.startSeconds" -}}
{{ add (include "lckv.fetchSeconds" . | int) (mul 5 (include "lckv.startFailures" . | int)) }}
{{- end -}}

{{/* Of a startup probe every 5 s. */}}
{{- define "lckv.startFailures" -}}
{{ div (add (include "lckv.gatherSeconds" . | int) 30 4) 5 }}
{{- end -}}

{{/* Whole CPUs of a quantity such as 4, "4" or 3500m, rounded down, at least 1. */}}
{{- define "lckv.wholeCpus" -}}
{{- $given := toString . -}}
{{- if hasSuffix "m" $given -}}
{{ max 1 (div (trimSuffix "m" $given | atoi) 1000) }}
{{- else -}}
{{ max 1 (floor (float64 $given) | int) }}
{{- end -}}
{{- end -}}

{{/* --name=value lines of a map. Numbers are float64 here: large whole ones must not become 1e+06. */}}
{{- define "lckv.flags" -}}
{{- range $name, $value := . }}
{{- if and (kindIs "float64" $value) (eq $value (floor $value)) }}{{ $value = int64 $value }}{{ end }}
- {{ printf "--%s=%v" $name $value | quote }}
{{- end }}
{{- end -}}
