{{/* A pod's template. root: the chart's context; part: head, driver, worker or submitter; of: its values. */}}
{{- define "loadgrid.pod" -}}
{{- $v := .root.Values -}}
metadata:
  labels:
    {{- merge (fromYaml (include "loadgrid.own" .root)) (dict "app.kubernetes.io/component" .part) $v.podLabels | toYaml | nindent 4 }}
  {{- with $v.podAnnotations }}
  annotations:
    {{- toYaml . | nindent 4 }}
  {{- end }}
spec:
  automountServiceAccountToken: false
  enableServiceLinks: false
  {{- with $v.serviceAccountName }}
  serviceAccountName: {{ . | quote }}
  {{- end }}
  {{- with $v.priorityClassName }}
  priorityClassName: {{ . | quote }}
  {{- end }}
  {{- with $v.image.pullSecrets }}
  imagePullSecrets:
    {{- range . }}
    - name: {{ . | quote }}
    {{- end }}
  {{- end }}
  {{- if eq .part "submitter" }}
  restartPolicy: Never
  {{- end }}
  {{- if eq .part "driver" }}
  terminationGracePeriodSeconds: 90 # the hook below takes 80 of them at most
  {{- end }}
  securityContext:
    runAsNonRoot: true
    runAsUser: {{ $v.security.runAsUser | int64 }}
    runAsGroup: {{ $v.security.runAsGroup | int64 }}
    fsGroup: {{ $v.security.fsGroup | int64 }}
    fsGroupChangePolicy: OnRootMismatch
    seccompProfile: {type: RuntimeDefault}
  {{- with .of.nodeSelector }}
  nodeSelector:
    {{- toYaml . | nindent 4 }}
  {{- end }}
  {{- with .of.tolerations }}
  tolerations:
    {{- toYaml . | nindent 4 }}
  {{- end }}
  {{- with .of.affinity }}
  affinity:
    {{- toYaml . | nindent 4 }}
  {{- end }}
  containers:
    - name: {{ .part }}
      image: {{ include "loadgrid.image" .root }}
      imagePullPolicy: {{ $v.image.pullPolicy }}
      securityContext:
        allowPrivilegeEscalation: false
        readOnlyRootFilesystem: true
        runAsNonRoot: true
        capabilities: {drop: [ALL]}
      env:
        {{- include "loadgrid.pod.env" . | nindent 8 }}
      {{- if eq .part "driver" }}
      lifecycle:
        preStop:
          exec:
            command:
              - bash
              - -c
              - |
                {{- include "loadgrid.pod.stop" . | nindent 16 }}
      {{- end }}
      {{- with include "loadgrid.pod.ports" . }}
      ports:
        {{- . | nindent 8 }}
      {{- end }}
      resources:
        {{- include "loadgrid.pod.resources" . | trim | nindent 8 }}
      volumeMounts:
        {{- include "loadgrid.pod.mounts" . | nindent 8 }}
  volumes:
    {{- include "loadgrid.pod.volumes" . | nindent 4 }}
{{- end }}

{{- define "loadgrid.pod.env" -}}
- {name: RAY_AUTH_MODE, value: token}
{{- if and .root.Values.cluster.existing .root.Values.auth.existingSecret }}
- name: RAY_AUTH_TOKEN
  valueFrom: {secretKeyRef: {name: {{ .root.Values.auth.existingSecret | quote }}, key: auth_token}}
{{- end }}
- {name: RAY_USAGE_STATS_ENABLED, value: "0"}
- {name: RAY_worker_niceness, value: "0"} # Ray's own is 15
- {name: HOME, value: /tmp} # the root is read-only
- {name: USER, value: loadgrid} # Python asks for a name, and the user's number may have none
{{- if not .of.gpus }}
- {name: NVIDIA_VISIBLE_DEVICES, value: void} # images made for CUDA ask for all GPUs
{{- end }}
{{- if eq .part "driver" }}
- {name: RAY_JOB_STOP_WAIT_TIME_S, value: "60"} # a job that is stopped has time to write its record and report
{{- end }}
{{- if has .part (list "driver" "worker") }}
- {name: LOADGRID_CACHE, value: /cache}
{{- end }}
{{- with .of.env }}
{{ toYaml . }}
{{- end }}
{{- end }}

{{/* Kubernetes tells process 1 of a pod alone that it shall end. That is Ray, which goes at once, and the job's watcher
then kills `loadgrid run` without a word: so it is told before, and waited for. The image has no pkill. */}}
{{- define "loadgrid.pod.stop" -}}
runs() { # the numbers of all `loadgrid run`; a zombie has no words
  for file in /proc/[0-9]*/cmdline; do
    words=()
    { mapfile -t -d '' words <"$file"; } 2>/dev/null
    if [[ ${words[1]##*/} == loadgrid && ${words[2]} == run ]]; then
      number=${file#/proc/}
      echo "${number%/cmdline}"
    fi
  done
}
for number in $(runs); do kill -TERM "$number"; done
SECONDS=0
while [[ -n $(runs) ]] && ((SECONDS < 80)); do sleep 0.2; done
{{- end }}

{{- define "loadgrid.pod.ports" -}}
{{- if ne .part "submitter" -}}
- {name: metrics, containerPort: 8080}
{{- end }}
{{- if eq .part "head" }}
- {name: gcs-server, containerPort: 6379}
- {name: dashboard, containerPort: 8265}
- {name: as-metrics, containerPort: 44217}
- {name: dash-metrics, containerPort: 44227}
{{- else if eq .part "driver" }}
- {name: loadgrid, containerPort: {{ .root.Values.metrics.port | int }}}
{{- end }}
{{- end }}

{{/* Requests and limits alike: the pod is Guaranteed, so a static CPU manager gives it whole cores of its own. */}}
{{- define "loadgrid.pod.resources" -}}
{{- range list "requests" "limits" }}
{{ . }}:
  cpu: {{ $.of.cpu | int }}
  memory: {{ $.of.memory }}
  {{- with $.of.gpus }}
  {{ $.root.Values.gpuResource }}: {{ . | int }}
  {{- end }}
{{- end }}
{{- end }}

{{- define "loadgrid.pod.mounts" -}}
- {name: tmp, mountPath: /tmp}
{{- if .of.shm }}
- {name: shm, mountPath: /dev/shm}
{{- end }}
{{- if eq .part "driver" }}
- {name: manifests, mountPath: {{ include "loadgrid.manifests.folder" .root }}, readOnly: true}
- {name: runs, mountPath: /runs}
{{- end }}
{{- if has .part (list "driver" "worker") }}
- {name: cache, mountPath: /cache}
{{- range .root.Values.data }}
- name: data-{{ .name }}
  mountPath: {{ .mountPath }}
  readOnly: true
  {{- with .subPath }}
  subPath: {{ . }}
  {{- end }}
{{- end }}
{{- end }}
{{- end }}

{{- define "loadgrid.pod.volumes" -}}
{{- $v := .root.Values -}}
- name: tmp
  emptyDir: {sizeLimit: {{ $v.tmpSize }}}
{{- with .of.shm }}
- name: shm
  emptyDir: {medium: Memory, sizeLimit: {{ . }}}
{{- end }}
{{- if eq .part "driver" }}
- name: manifests
  configMap: {name: {{ .root.Release.Name }}-manifests}
- name: runs
  persistentVolumeClaim: {claimName: {{ $v.runs.existingClaim | default (printf "%s-runs" .root.Release.Name) | quote }}}
{{- end }}
{{- if has .part (list "driver" "worker") }}
- name: cache
  {{- if $v.cache.existingClaim }}
  persistentVolumeClaim: {claimName: {{ $v.cache.existingClaim | quote }}}
  {{- else }}
  emptyDir: {sizeLimit: {{ $v.cache.size }}}
  {{- end }}
{{- range $v.data }}
- name: data-{{ .name }}
  {{- toYaml .source | nindent 2 }}
{{- end }}
{{- end }}
{{- end }}
