{{/* Ray's head, the driver's pod and the groups of workers. Ray places by its own resources: only workers' pods have
CPUs and GPUs in its eyes, and only the driver's has `loadgrid-driver`. */}}
{{- define "loadgrid.cluster" -}}
rayVersion: {{ .Values.rayVersion | quote }}
enableInTreeAutoscaling: false
authOptions:
  mode: token
  {{- with .Values.auth.existingSecret }}
  secretName: {{ . | quote }}
  {{- end }}
headGroupSpec:
  rayStartParams:
    num-cpus: "0"
    num-gpus: "0"
    {{- include "loadgrid.ray.params" . | nindent 4 }}
  template:
    {{- include "loadgrid.pod" (dict "root" . "part" "head" "of" .Values.head) | nindent 4 }}
workerGroupSpecs:
  - groupName: driver
    replicas: 1
    minReplicas: 1
    maxReplicas: 1
    rayStartParams:
      num-cpus: "0"
      num-gpus: "0"
      resources: {{ "'{\"loadgrid-driver\": 1}'" | quote }}
      {{- include "loadgrid.ray.params" . | nindent 6 }}
    template:
      {{- include "loadgrid.pod" (dict "root" . "part" "driver" "of" .Values.driver) | nindent 6 }}
  {{- range .Values.workers }}
  - groupName: {{ .name | quote }}
    replicas: {{ .replicas | int }}
    minReplicas: {{ .replicas | int }}
    maxReplicas: {{ .replicas | int }}
    rayStartParams:
      num-cpus: {{ .cpu | int | quote }}
      num-gpus: {{ .gpus | int | quote }}
      {{- include "loadgrid.ray.params" $ | nindent 6 }}
    template:
      {{- include "loadgrid.pod" (dict "root" $ "part" "worker" "of" .) | nindent 6 }}
  {{- end }}
{{- end }}

{{/* Ray's object store is small: samples and answers do not travel through it, and it would take 30 % of the memory. */}}
{{- define "loadgrid.ray.params" -}}
object-store-memory: "200000000"
disable-usage-stats: "true"
{{ include "loadgrid.ray.ports" . }}
{{- end }}

{{/* A running cluster's pods mount no ConfigMap of ours, so the manifests travel in the command, in letters that no
shell on the way reads otherwise. */}}
{{- define "loadgrid.entrypoint.existing" -}}
{{- $folder := include "loadgrid.manifests.folder" . -}}
exec bash -c 'set -e; rm -rf {{ $folder }}; mkdir -p {{ $folder }};
{{- range $name, $text := .Values.manifests }} echo {{ include "loadgrid.manifest" (dict "root" $ "name" $name "text" $text) | b64enc }} | base64 -d > {{ $folder }}/{{ $name }}.yaml;
{{- end }} exec {{ include "loadgrid.run" . }}'
{{- end }}
