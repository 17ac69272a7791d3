{{/* Names and labels, and words that Kubernetes would expand: every $ is doubled, which it undoes. */}}
{{- define "engine.name" -}}
{{ .Values.fullnameOverride | default .Release.Name }}
{{- end -}}

{{- define "engine.selector" -}}
app.kubernetes.io/name: {{ include "engine.name" . | quote }}
app.kubernetes.io/component: engine
{{- end -}}

{{- define "engine.labels" -}}
{{ include "engine.selector" . }}
app.kubernetes.io/part-of: {{ include "engine.name" . | quote }}
{{- with .Values.engine.version }}
app.kubernetes.io/version: {{ . | quote }}
{{- end }}
{{- end -}}

{{- define "engine.image" -}}
{{ .Values.image.repository }}{{ with .Values.image.tag }}:{{ . }}{{ end }}
{{- end -}}

{{- define "engine.words" -}}
{{- $words := list -}}
{{- range . }}{{ $words = append $words (. | toString | replace "$" "$$") }}{{ end -}}
{{ toYaml $words }}
{{- end -}}

{{- define "engine.claim" -}}
{{ .Values.model.existingClaim | default (printf "%s-model-%s" (include "engine.name" .) .Values.model.key) }}
{{- end -}}

{{- define "engine.filesChecksum" -}}
{{- $all := "" -}}
{{- range $path, $text := .Values.engine.files }}{{ $all = printf "%s%s\n%s\n" $all $path $text }}{{ end -}}
{{ sha256sum $all }}
{{- end -}}

{{- define "engine.query" -}}
{{ .Values.autoscaling.keda.query | replace "$(NAMESPACE)" .Release.Namespace | replace "$(SERVICE)" (printf "%s-metrics" (include "engine.name" .)) }}
{{- end -}}

{{- define "canary.selector" -}}
app.kubernetes.io/name: {{ include "engine.name" . | quote }}
app.kubernetes.io/component: canary
{{- end -}}

{{- define "canary.labels" -}}
{{ include "canary.selector" . }}
app.kubernetes.io/part-of: {{ include "engine.name" . | quote }}
{{- end -}}
