{{/* Faults between values, which a schema cannot tell; each sentence says what to do. */}}
{{- define "loadgrid.check" -}}
{{- $v := .Values -}}
{{- include "loadgrid.check.values" . -}}
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
{{- $names := list "RAY_AUTH_MODE" "RAY_AUTH_TOKEN" "RAY_USAGE_STATS_ENABLED" "RAY_worker_niceness" "HOME" "USER" "NVIDIA_VISIBLE_DEVICES" "LOADGRID_CACHE" "RAY_JOB_STOP_WAIT_TIME_S" -}}
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
{{- if not $v.run.resume -}}
{{- if gt ($v.job.backoffLimit | int) 0 -}}
{{- fail (printf "\njob.backoffLimit is %d, and a retry, which also follows a test INVALID or a wrong manifest, would begin a whole new campaign: set run.resume to true, so that it runs only what is missing, or job.backoffLimit to 0\n" ($v.job.backoffLimit | int)) -}}
{{- end -}}
{{- if eq $v.gang.kind "kueue" -}}
{{- fail "\ngang.kind is kueue, which may take the pods away and let the job begin again, and it would begin a whole new campaign: set run.resume to true, so that it runs only what is missing\n" -}}
{{- end -}}
{{- end -}}
{{- $names := list -}}
{{- range $v.workers -}}
{{- if has .name (list "driver" "head" "headgroup") -}}
{{- fail (printf "\na group of workers is named %s, which is another part of the cluster: choose another name\n" .name) -}}
{{- end -}}
{{- if has .name $names -}}
{{- fail (printf "\ntwo groups of workers are named %s: give each a name of its own\n" .name) -}}
{{- end -}}
{{- $names = append $names .name -}}
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
{{- include "loadgrid.check.manifest" (dict "root" $ "name" $name "text" $text) -}}
{{- end -}}
{{- end }}

{{/* What a manifest asks for and the release's own pods cannot give. */}}
{{- define "loadgrid.check.manifest" -}}
{{- $where := printf "manifests.%s" .name -}}
{{- $read := fromJson (include "loadgrid.manifest.read" .) -}}
{{- $asks := $read.workers | default dict -}}
{{- $metrics := $read.metrics | default dict -}}
{{- if eq ($asks.where | default "ray") "local" -}}
{{- fail (printf "\n%s has workers.where: local, which leaves the groups of workers idle: take it out\n" $where) -}}
{{- end -}}
{{- range $field, $listen := dict "dispatch.listen" ($read.dispatch | default dict).listen "metrics.listen" (and .root.Values.networkPolicy.enabled $metrics.listen) -}}
{{- if regexMatch "^(127\\.|localhost$|::1$)" ($listen | default "" | toString) -}}
{{- fail (printf "\n%s has %s: %s, where no other pod reaches the driver: take the line out\n" $where $field $listen) -}}
{{- end -}}
{{- end -}}
{{- if and .root.Values.monitoring.podMonitor.enabled (hasKey $metrics "port") (not $metrics.port) -}}
{{- fail (printf "\n%s has metrics.port: null, so nothing would be served, and monitoring.podMonitor is enabled: take the line out, or set monitoring.podMonitor.enabled to false\n" $where) -}}
{{- end -}}
{{- if and .root.Values.monitoring.podMonitor.enabled (not .root.Values.networkPolicy.enabled) (regexMatch "^(127\\.|localhost$|::1$|$)" ($metrics.listen | default "" | toString)) -}}
{{- fail (printf "\n%s serves its metrics to its own pod alone, since networkPolicy.enabled is false, and monitoring.podMonitor is enabled: write metrics.listen, such as 0.0.0.0, in the manifest, or set networkPolicy.enabled to true\n" $where) -}}
{{- end -}}
{{- $count := $asks.count | default 1 -}}
{{- $cpus := ternary $asks.num_cpus 1 (hasKey $asks "num_cpus") -}}
{{- $gpus := $asks.num_gpus | default 0 -}}
{{- $most := 0.0 -}}
{{- $all := 0.0 -}}
{{- range .root.Values.workers -}}
{{- $room := include "loadgrid.room" (dict "cpu" .cpu "gpus" .gpus "num_cpus" $cpus "num_gpus" $gpus) | float64 -}}
{{- $most = maxf $most $room -}}
{{- $all = addf $all (mulf .replicas $room) -}}
{{- end -}}
{{- $each := printf "with %v CPUs and %v GPUs each (workers.num_cpus, workers.num_gpus)" $cpus $gpus -}}
{{- if lt $most 1.0 -}}
{{- fail (printf "\n%s asks for workers %s, and no pod in the groups of workers has room for one: lower those in the manifest, or raise cpu or gpus there\n" $where $each) -}}
{{- else if eq ($asks.placement | default "spread") "per_node" -}}
{{- if gt (float64 $count) $most -}}
{{- fail (printf "\n%s asks for %v workers on every node (placement: per_node) %s, and no pod in the groups of workers has room for more than %v: lower workers.count in the manifest, or raise cpu or gpus there\n" $where $count $each $most) -}}
{{- end -}}
{{- else if gt (float64 $count) $all -}}
{{- fail (printf "\n%s asks for %v workers %s, and the groups of workers have room for %v: lower workers.count in the manifest, or raise replicas, cpu or gpus there\n" $where $count $each $all) -}}
{{- end -}}
{{- end }}

{{/* How many workers fit into one pod. Ray gives a share of a GPU from one GPU. */}}
{{- define "loadgrid.room" -}}
{{- $room := 1e6 -}}
{{- if gt (float64 .num_cpus) 0.0 -}}
{{- $room = minf $room (floor (divf .cpu .num_cpus)) -}}
{{- end -}}
{{- if gt (float64 .num_gpus) 1.0 -}}
{{- $room = minf $room (floor (divf .gpus .num_gpus)) -}}
{{- else if gt (float64 .num_gpus) 0.0 -}}
{{- $room = minf $room (mulf .gpus (floor (divf 1 .num_gpus))) -}}
{{- end -}}
{{- $room -}}
{{- end }}
