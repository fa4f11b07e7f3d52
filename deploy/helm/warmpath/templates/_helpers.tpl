{{- define "warmpath.fullname" -}}
{{- if .Values.fullnameOverride -}}
{{- .Values.fullnameOverride | trunc 63 | trimSuffix "-" -}}
{{- else -}}
{{- $name := default .Chart.Name .Values.nameOverride -}}
{{- if contains $name .Release.Name -}}
{{- .Release.Name | trunc 63 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-%s" .Release.Name $name | trunc 63 | trimSuffix "-" -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{- define "warmpath.selectorLabels" -}}
app.kubernetes.io/name: {{ default .Chart.Name .Values.nameOverride }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end -}}

{{- define "warmpath.labels" -}}
{{ include "warmpath.selectorLabels" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version }}
{{- end -}}

{{- define "warmpath.serviceAccount" -}}
{{- if .Values.serviceAccount.create -}}
{{- default (include "warmpath.fullname" .) .Values.serviceAccount.name -}}
{{- else -}}
{{- default "default" .Values.serviceAccount.name -}}
{{- end -}}
{{- end -}}

{{- define "warmpath.tokenSecret" -}}
{{- default (printf "%s-admin" (include "warmpath.fullname" .)) .Values.adminToken.existingSecret -}}
{{- end -}}

{{/* warmpath.yaml: the values' `config`, and what the chart decides. */}}
{{- define "warmpath.config" -}}
{{- $own := dict
  "listen" (printf "%s:%d" .Values.listenAddress (int .Values.ports.http))
  "admin" (printf "%s:%d" .Values.listenAddress (int .Values.ports.admin))
  "admin_open_metrics" true
  "drain_timeout" (printf "%ds" (int .Values.drainSeconds)) -}}
{{- mergeOverwrite (deepCopy .Values.config) $own | toYaml -}}
{{- end -}}

{{/* The rules that the sources in one namespace need: a list of sources as input. */}}
{{- define "warmpath.rules" -}}
{{- $needsPods := false -}}
{{- range . }}{{ if or .pods .inference_pool }}{{ $needsPods = true }}{{ end }}{{ end -}}
{{- $needsSlices := false -}}
{{- range . }}{{ if .service }}{{ $needsSlices = true }}{{ end }}{{ end -}}
{{- $needsPools := false -}}
{{- range . }}{{ if .inference_pool }}{{ $needsPools = true }}{{ end }}{{ end -}}
{{- if $needsPods }}
- apiGroups: [""]
  resources: [pods]
  verbs: [list, watch]
{{- end }}
{{- if $needsSlices }}
- apiGroups: [discovery.k8s.io]
  resources: [endpointslices]
  verbs: [list, watch]
{{- end }}
{{- if $needsPools }}
- apiGroups: [inference.networking.k8s.io]
  resources: [inferencepools]
  verbs: [list, watch]
{{- end }}
{{- end -}}
