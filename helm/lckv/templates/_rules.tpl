{{/* Parts of network policies, autoscalers and certificates. */}}

{{- define "lckv.dnsEgress" -}}
{{- if not (or .Values.networkPolicy.dns .Values.networkPolicy.dnsAddresses) -}}
{{- /* A rule without peers is one for all of them. */ -}}
{{- fail "networkPolicy: dns and dnsAddresses are both empty: name what the cluster's pods ask for names, or set networkPolicy.enabled to false" -}}
{{- end -}}
- to:
    {{- with .Values.networkPolicy.dns }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
    {{- range .Values.networkPolicy.dnsAddresses }}
    - ipBlock: {cidr: "{{ . }}/{{ ternary 128 32 (contains ":" .) }}"}
    {{- end }}
  ports:
    {{- range $.Values.networkPolicy.dnsPorts }}
    - {port: {{ int . }}, protocol: UDP}
    - {port: {{ int . }}, protocol: TCP}
    {{- end }}
{{- end -}}

{{/* (dict "root" $ "ports" PORTS) */}}
{{- define "lckv.metricsIngress" -}}
{{- with .root.Values.networkPolicy.prometheus -}}
- from:
    {{- toYaml . | nindent 4 }}
  ports:
    {{- range $.ports }}
    - {{ toJson (merge (dict "protocol" "TCP") .) }}
    {{- end }}
{{- end }}
{{- end -}}

{{/* Up at once, down one by one. */}}
{{- define "lckv.scaling" -}}
scaleUp:
  stabilizationWindowSeconds: 0
  policies:
    - {type: Percent, value: 100, periodSeconds: 60}
    - {type: Pods, value: 2, periodSeconds: 60}
scaleDown:
  stabilizationWindowSeconds: {{ min 3600 (int .scaleDownSeconds) }}
  policies:
    - {type: Pods, value: 1, periodSeconds: {{ min 1800 (max 60 (div (int .scaleDownSeconds) 2)) }}}
{{- end -}}

{{/* (dict "root" $ "component" NAME "name" NAME "names" HOSTS "usages" USAGES "issuer" ISSUER) */}}
{{- define "lckv.certificate" -}}
---
apiVersion: cert-manager.io/v1
kind: Certificate
metadata:
  name: {{ .name }}
  labels:
    {{- include "lckv.labels" (dict "root" .root "component" .component) | nindent 4 }}
spec:
  secretName: {{ .name }}
  privateKey: {algorithm: ECDSA, size: 256, rotationPolicy: Always}
  usages: {{ toJson .usages }}
  dnsNames:
    {{- range .names }}
    - {{ . | quote }}
    {{- end }}
  issuerRef: {name: {{ .issuer.name }}, kind: {{ .issuer.kind }}, group: cert-manager.io}
{{- end -}}
