{{/* Names and labels. */}}

{{- define "lckv.fullname" -}}
{{- $name := .Values.fullnameOverride -}}
{{- if not $name -}}
{{- $name = ternary .Release.Name (printf "%s-%s" .Release.Name .Chart.Name) (contains .Chart.Name .Release.Name) -}}
{{- end -}}
{{- /* LeaderWorkerSet puts names of pods into labels, which end at 63 characters. */ -}}
{{- if gt (len $name) 22 -}}
{{- fail (printf "the name %q has more than 22 characters: give a shorter fullnameOverride" $name) -}}
{{- end -}}
{{- if not (regexMatch "^[a-z]([-a-z0-9]*[a-z0-9])?$" $name) -}}
{{- fail (printf "the name %q cannot name a Service: give a fullnameOverride of a-z, 0-9 and -, a letter first" $name) -}}
{{- end -}}
{{- $name -}}
{{- end -}}

{{- define "lckv.router" -}}
{{ include "lckv.fullname" . }}-router
{{- end -}}

{{- define "lckv.serviceAccount" -}}
{{ .Values.serviceAccount.name | default (include "lckv.fullname" .) }}
{{- end -}}

{{/* What selects pods, and never changes: (dict "root" $ "component" NAME "model" NAME or absent). */}}
{{- define "lckv.selector" -}}
app.kubernetes.io/name: {{ .root.Chart.Name }}
app.kubernetes.io/instance: {{ .root.Release.Name }}
app.kubernetes.io/component: {{ .component }}
{{- with .model }}
lckv/model: {{ . }}
{{- end }}
{{- end -}}

{{- define "lckv.labels" -}}
{{ include "lckv.selector" . }}
app.kubernetes.io/version: {{ .root.Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .root.Release.Service }}
helm.sh/chart: {{ .root.Chart.Name }}-{{ .root.Chart.Version | replace "+" "_" }}
{{- end -}}

{{/* What selects the leaders of a model: (dict "root" $ "model" MODEL). */}}
{{- define "lckv.leaders" -}}
{{ include "lckv.selector" (dict "root" .root "component" "worker" "model" .model.key) }}
{{- if gt (int .model.hosts) 1 }}
leaderworkerset.sigs.k8s.io/worker-index: "0"
{{- end }}
{{- end -}}

{{/* (dict "root" $ "image" IMAGE) */}}
{{- define "lckv.image" -}}
{{- $repository := .image.repository -}}
{{- with .root.Values.images.prefix }}{{ $repository = printf "%s/%s" (trimSuffix "/" .) $repository }}{{ end -}}
{{- if .image.digest -}}
{{ $repository }}@{{ .image.digest }}
{{- else -}}
{{ $repository }}:{{ .image.tag | default .root.Chart.AppVersion }}
{{- end -}}
{{- end -}}
