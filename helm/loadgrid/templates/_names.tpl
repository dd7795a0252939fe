{{/* Labels of every object. */}}
{{- define "loadgrid.labels" -}}
app.kubernetes.io/name: loadgrid
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
{{ include "loadgrid.own" . }}
{{- end }}

{{/* What all pods of the release have, and no other pod. Not app.kubernetes.io/name: KubeRay sets it to its own, and
the Service that it makes for a RayJob's head selects by it. */}}
{{- define "loadgrid.own" -}}
app.kubernetes.io/instance: {{ .Release.Name | quote }}
app.kubernetes.io/part-of: loadgrid
{{- end }}

{{- define "loadgrid.image" -}}
{{- with .Values.image -}}
{{- if .digest -}}
{{ .repository }}@{{ .digest }}
{{- else -}}
{{ .repository }}:{{ .tag | default $.Chart.AppVersion }}
{{- end -}}
{{- end -}}
{{- end }}

{{/* The folder of the manifests in the driver's pod. Their ../data and ../weights are siblings of it. */}}
{{- define "loadgrid.manifests.folder" -}}
{{- if .Values.cluster.existing -}}
/tmp/loadgrid/{{ .Release.Name }}/manifests
{{- else -}}
/etc/loadgrid/manifests
{{- end -}}
{{- end }}

{{/* The ports of Ray that pods of one cluster must reach, fixed so that no more need be open. Not among them: the
runtime environment's agent, whose only client is on its own host, and Ray's client server. */}}
{{- define "loadgrid.ray.ports" -}}
node-manager-port: "6380"
object-manager-port: "6381"
runtime-env-agent-port: "6382"
dashboard-agent-grpc-port: "6383"
dashboard-agent-listen-port: "52365"
metrics-export-port: "8080"
min-worker-port: "10002"
max-worker-port: "19999"
{{- end }}

{{/* `loadgrid run` as one line of plain words: KubeRay hands it to a shell of the submitter. Ray starts a shell for it
too; with `exec` in front that is gone, and stopping the job does not wait for it. */}}
{{- define "loadgrid.run" -}}
{{- $runs := ternary .Values.cluster.runsDir "/runs" (ne .Values.cluster.existing "") -}}
loadgrid run {{ include "loadgrid.manifests.folder" . }} --address auto --runs-dir {{ $runs }}
{{- if .Values.run.compliance }} --compliance{{ end }}
{{- if .Values.run.resume }} --resume{{ end }}
{{- if .Values.run.json }} --json{{ end }}
{{- end }}

{{/* Pods of other namespaces, as an entry of a NetworkPolicy's from or to. */}}
{{- define "loadgrid.peer" -}}
{{- if not (or .namespaceLabels .podLabels) -}}
{{- fail "\na peer in networkPolicy has neither namespaceLabels nor podLabels, which would let every pod in: set one of them\n" -}}
{{- end -}}
- namespaceSelector: {{ if .namespaceLabels }}{matchLabels: {{ toJson .namespaceLabels }}}{{ else }}{}{{ end }}
  {{- with .podLabels }}
  podSelector: {matchLabels: {{ toJson . }}}
  {{- end }}
{{- end }}
