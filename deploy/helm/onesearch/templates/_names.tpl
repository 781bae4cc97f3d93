{{/* Names, labels and images. */}}

{{- define "onesearch.name" -}}
{{- default .Chart.Name .Values.nameOverride | trunc 40 | trimSuffix "-" -}}
{{- end -}}

{{- define "onesearch.fullname" -}}
{{- if .Values.fullnameOverride -}}
{{- .Values.fullnameOverride | trunc 40 | trimSuffix "-" -}}
{{- else if contains (include "onesearch.name" .) .Release.Name -}}
{{- .Release.Name | trunc 40 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-%s" .Release.Name (include "onesearch.name" .) | trunc 40 | trimSuffix "-" -}}
{{- end -}}
{{- end -}}

{{/* What never changes of a pod's labels. Argument: dict root, component, and pool where there is one. */}}
{{- define "onesearch.selector" -}}
app.kubernetes.io/name: {{ include "onesearch.name" .root }}
app.kubernetes.io/instance: {{ .root.Release.Name }}
app.kubernetes.io/component: {{ .component }}
{{- with .pool }}
onesearch/pool: {{ . }}
{{- end }}
{{- end -}}

{{- define "onesearch.labels" -}}
{{ include "onesearch.selector" . }}
app.kubernetes.io/version: {{ .root.Chart.AppVersion | quote }}
app.kubernetes.io/part-of: onesearch
app.kubernetes.io/managed-by: {{ .root.Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .root.Chart.Name .root.Chart.Version }}
{{- with .root.Values.commonLabels }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{/* Argument: dict root, target. */}}
{{- define "onesearch.image" -}}
{{- $image := .root.Values.image -}}
{{- with $image.registry }}{{ . }}/{{ end }}{{ $image.repository }}/{{ .target }}:{{ default .root.Chart.AppVersion $image.tag }}
{{- end -}}

{{- define "onesearch.serviceAccount" -}}
{{- if .Values.serviceAccount.create -}}
{{- default (include "onesearch.fullname" .) .Values.serviceAccount.name -}}
{{- else -}}
{{- default "default" .Values.serviceAccount.name -}}
{{- end -}}
{{- end -}}

{{- define "onesearch.redisSecret" -}}
{{- default (printf "%s-redis" (include "onesearch.fullname" .)) .Values.redis.existingSecret -}}
{{- end -}}

{{- define "onesearch.claim" -}}
{{- $of := index .root.Values.persistence .volume -}}
{{- default (printf "%s-%s" (include "onesearch.fullname" .root) .volume) $of.existingClaim -}}
{{- end -}}

{{/* A pool with what holds for every pool. Argument: dict root, name. */}}
{{- define "onesearch.pool" -}}
{{- $given := default dict (index .root.Values.gateways .name) -}}
{{- mustMergeOverwrite (deepCopy .root.Values.gateway) (deepCopy $given) | toJson -}}
{{- end -}}

{{/* Half of the cores of a limit, at least one thread. Argument: the limit, such as "2" or 1500m. */}}
{{- define "onesearch.engineThreads" -}}
{{- $limit := toString . -}}
{{- $cores := ternary (div (trimSuffix "m" $limit | int) 1000) (floor (float64 $limit) | int) (hasSuffix "m" $limit) -}}
{{- max 1 (div $cores 2) -}}
{{- end -}}
