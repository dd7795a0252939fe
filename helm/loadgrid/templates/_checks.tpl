{{/* Faults between values, which a schema cannot tell; each sentence says what to do. */}}
{{- define "loadgrid.check" -}}
{{- $v := .Values -}}
{{- if not (regexMatch "^[a-z]([-a-z0-9]*[a-z0-9])?$" .Release.Name) -}}
{{- fail (printf "\nthe release's name is the RayJob's, and KubeRay wants a letter first and no dots: %q is not such a name\n" .Release.Name) -}}
{{- end -}}
{{- if gt (len .Release.Name) 47 -}}
{{- fail "\nthe release's name is the RayJob's, and KubeRay allows 47 characters: choose a shorter one\n" -}}
{{- end -}}
{{- if not $v.manifests -}}
{{- fail "\nno manifest: give at least one, such as --set-file manifests.NAME=FILE.yaml\n" -}}
{{- end -}}
{{- if and (ne $v.gang.kind "none") (not $v.gang.queue) -}}
{{- fail (printf "\ngang.kind is %s: name its queue in gang.queue\n" $v.gang.kind) -}}
{{- end -}}
{{- if and (eq $v.gang.kind "none") $v.gang.queue -}}
{{- fail "\ngang.queue is set: set gang.kind to kueue or volcano too\n" -}}
{{- end -}}
{{- range $label, $_ := $v.podLabels -}}
{{- if has $label (list "app.kubernetes.io/name" "app.kubernetes.io/created-by" "app.kubernetes.io/instance" "app.kubernetes.io/part-of" "app.kubernetes.io/component") -}}
{{- fail (printf "\npodLabels sets %s, by which KubeRay and this chart find the pods: take it out\n" $label) -}}
{{- end -}}
{{- end -}}
{{- range concat (list $v.driver $v.head $v.submitter) $v.workers -}}
{{- $names := list "RAY_AUTH_MODE" "RAY_AUTH_TOKEN" "RAY_USAGE_STATS_ENABLED" "HOME" "USER" "NVIDIA_VISIBLE_DEVICES" "LOADGRID_CACHE" "RAY_JOB_STOP_WAIT_TIME_S" -}}
{{- range .env -}}
{{- if has .name $names -}}
{{- fail (printf "\nan env sets %s twice, or instead of the chart: take it out\n" .name) -}}
{{- end -}}
{{- $names = append $names .name -}}
{{- end -}}
{{- end -}}
{{- include "loadgrid.check.ports" . -}}
{{- if $v.cluster.existing -}}
{{- include "loadgrid.check.existing" . -}}
{{- else -}}
{{- include "loadgrid.check.own" . -}}
{{- end -}}
{{- end }}

{{- define "loadgrid.check.ports" -}}
{{- $low := index .Values.dispatch.ports 0 | int -}}
{{- $high := index .Values.dispatch.ports 1 | int -}}
{{- $metrics := .Values.metrics.port | int -}}
{{- if gt $low $high -}}
{{- fail (printf "\ndispatch.ports is [lowest, highest]: %d is above %d\n" $low $high) -}}
{{- end -}}
{{- if and (le $low $metrics) (le $metrics $high) -}}
{{- fail (printf "\nmetrics.port %d lies in dispatch.ports: choose another\n" $metrics) -}}
{{- end -}}
{{- $ray := list (list 6379 6383) (list 8080 8080) (list 8265 8265) (list 10001 19999) (list 44217 44227) (list 52365 52365) -}}
{{- range $ray -}}
{{- $first := index . 0 -}}
{{- $last := index . 1 -}}
{{- if and (le $low $last) (le $first $high) -}}
{{- fail (printf "\ndispatch.ports %d to %d meets Ray's own ports %d to %d: choose others\n" $low $high $first $last) -}}
{{- end -}}
{{- if and (le $first $metrics) (le $metrics $last) -}}
{{- fail (printf "\nmetrics.port %d is one of Ray's own ports: choose another\n" $metrics) -}}
{{- end -}}
{{- end -}}
{{- end }}

{{- define "loadgrid.check.existing" -}}
{{- $v := .Values -}}
{{- $where := printf "cluster.existing is %s" $v.cluster.existing -}}
{{- if ne $v.gang.kind "none" -}}
{{- fail (printf "\n%s, and its pods run already: set gang.kind to none\n" $where) -}}
{{- end -}}
{{- if gt ($v.job.backoffLimit | int) 0 -}}
{{- fail (printf "\n%s, and KubeRay retries no job on a cluster that it did not make: set job.backoffLimit to 0\n" $where) -}}
{{- end -}}
{{- $pods := dict "workers" $v.workers "data" $v.data "runs.existingClaim" $v.runs.existingClaim "cache.existingClaim" $v.cache.existingClaim -}}
{{- $_ := set $pods "monitoring.podMonitor.enabled" $v.monitoring.podMonitor.enabled -}}
{{- range $field, $value := $pods -}}
{{- if $value -}}
{{- fail (printf "\n%s, whose pods are not this release's: take %s out\n" $where $field) -}}
{{- end -}}
{{- end -}}
{{- end }}

{{- define "loadgrid.check.own" -}}
{{- $v := .Values -}}
{{- if not $v.workers -}}
{{- fail "\nno workers: give at least one group in workers, or the name of a running RayCluster in cluster.existing\n" -}}
{{- end -}}
{{- if $v.cluster.driverResources -}}
{{- fail "\ncluster.driverResources is for cluster.existing: this release makes its driver's pod itself, take it out\n" -}}
{{- end -}}
{{- $names := list -}}
{{- $gpus := 0 -}}
{{- $cpus := 0 -}}
{{- range $v.workers -}}
{{- if has .name (list "driver" "head" "headgroup") -}}
{{- fail (printf "\na group of workers is named %s, which is another part of the cluster: choose another name\n" .name) -}}
{{- end -}}
{{- if has .name $names -}}
{{- fail (printf "\ntwo groups of workers are named %s: give each a name of its own\n" .name) -}}
{{- end -}}
{{- $names = append $names .name -}}
{{- $gpus = add $gpus (mul .replicas .gpus) -}}
{{- $cpus = add $cpus (mul .replicas .cpu) -}}
{{- end -}}
{{- $names = list -}}
{{- $paths := list "/tmp" "/dev/shm" "/cache" "/runs" "/etc/loadgrid/manifests" -}}
{{- range $v.data -}}
{{- if has .name $names -}}
{{- fail (printf "\ntwo volumes in data are named %s: give each a name of its own\n" .name) -}}
{{- end -}}
{{- if has (clean .mountPath) $paths -}}
{{- fail (printf "\nthe volume %s in data has the mountPath %s, where another is mounted: choose another\n" .name .mountPath) -}}
{{- end -}}
{{- $names = append $names .name -}}
{{- $paths = append $paths (clean .mountPath) -}}
{{- end -}}
{{- range $name, $text := $v.manifests -}}
{{- $asks := (fromJson (include "loadgrid.manifest.read" (dict "name" $name "text" $text))).workers | default dict -}}
{{- if eq ($asks.where | default "ray") "local" -}}
{{- fail (printf "\nmanifests.%s has workers.where: local, which leaves the groups of workers idle: take it out\n" $name) -}}
{{- end -}}
{{- if ne ($asks.placement | default "spread") "per_node" -}}
{{- $count := $asks.count | default 1 -}}
{{- $wants := mulf $count ($asks.num_gpus | default 0) -}}
{{- if gt $wants (float64 $gpus) -}}
{{- fail (printf "\nmanifests.%s asks for %v GPUs in all, and the groups of workers have %d: raise replicas or gpus there, or lower workers.count in the manifest\n" $name $wants $gpus) -}}
{{- end -}}
{{- $wants = mulf $count (ternary $asks.num_cpus 1 (hasKey $asks "num_cpus")) -}}
{{- if gt $wants (float64 $cpus) -}}
{{- fail (printf "\nmanifests.%s asks for %v CPUs for its workers, and their groups have %d: raise replicas or cpu there, or lower workers.num_cpus in the manifest\n" $name $wants $cpus) -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- end }}
