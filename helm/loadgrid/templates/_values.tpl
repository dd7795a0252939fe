{{/* The form of single values. A schema's pattern would say it as a regular expression; these say it in words. */}}
{{- define "loadgrid.check.values" -}}
{{- $v := .Values -}}
{{- include "loadgrid.check.image" $v.image -}}
{{- include "loadgrid.is" (list "version" "rayVersion" $v.rayVersion) -}}
{{- include "loadgrid.is" (list "resource" "gpuResource" $v.gpuResource) -}}
{{- include "loadgrid.is" (list "path" "cluster.runsDir" $v.cluster.runsDir) -}}
{{- include "loadgrid.is" (list "duration" "monitoring.podMonitor.interval" $v.monitoring.podMonitor.interval) -}}
{{- $names := dict "cluster.existing" $v.cluster.existing "runs.existingClaim" $v.runs.existingClaim "runs.storageClass" $v.runs.storageClass -}}
{{- $_ := set $names "cache.existingClaim" $v.cache.existingClaim -}}
{{- $_ := set $names "auth.existingSecret" $v.auth.existingSecret -}}
{{- $_ := set $names "gang.queue" $v.gang.queue -}}
{{- $_ := set $names "serviceAccountName" $v.serviceAccountName -}}
{{- $_ := set $names "priorityClassName" $v.priorityClassName -}}
{{- range $where, $name := $names -}}
{{- if $name -}}{{- include "loadgrid.is" (list "name" $where $name) -}}{{- end -}}
{{- end -}}
{{- range $where, $amount := dict "runs.size" $v.runs.size "cache.size" $v.cache.size "tmpSize" $v.tmpSize -}}
{{- include "loadgrid.is" (list "amount" $where $amount) -}}
{{- end -}}
{{- range $where, $pod := dict "driver" $v.driver "head" $v.head "submitter" $v.submitter -}}
{{- include "loadgrid.check.pod" (list $where $pod) -}}
{{- end -}}
{{- range $number, $group := $v.workers -}}
{{- $where := printf "workers[%d]" $number -}}
{{- include "loadgrid.is" (list "group" (printf "%s.name" $where) $group.name) -}}
{{- include "loadgrid.check.pod" (list $where $group) -}}
{{- end -}}
{{- range $number, $volume := $v.data -}}
{{- include "loadgrid.check.volume" (list (printf "data[%d]" $number) $volume) -}}
{{- end -}}
{{- range $name, $_ := $v.manifests -}}
{{- include "loadgrid.is" (list "manifest" "the name of a manifest" $name) -}}
{{- if regexMatch "(?i)\\.ya?ml$" $name -}}
{{- fail (printf "\nmanifests has %q, and the chart adds .yaml itself: leave it out of the name\n" $name) -}}
{{- end -}}
{{- end -}}
{{- end }}

{{/* Fails with a sentence where a value has not the form of its kind: a list of kind, place and value. */}}
{{- define "loadgrid.is" -}}
{{- $kinds := dict
  "amount" (list "^[1-9][0-9]*(\\.[0-9]+)?(Ki|Mi|Gi|Ti|k|M|G|T)$" "amount of bytes in Kubernetes: write a number and Mi, Gi or Ti (decimal: M, G or T), such as 4Gi")
  "name" (list "^[a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?$" "name in Kubernetes: write small letters, digits, - and dots, with a letter or digit first and last")
  "group" (list "^[a-z]([a-z0-9-]{0,18}[a-z0-9])?$" "name of a group: write at most 20 small letters, digits and -, with a letter first and no - last")
  "volume" (list "^[a-z0-9]([a-z0-9-]{0,48}[a-z0-9])?$" "name of a volume: write at most 50 small letters, digits and -, with no - first or last")
  "manifest" (list "^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$" "file's name: write at most 100 letters, digits and . _ -, with a letter or digit first")
  "path" (list "^/[A-Za-z0-9._/-]*$" "path in a pod: write a / first, then letters, digits and . _ - /")
  "part" (list "^[A-Za-z0-9_-][A-Za-z0-9._/-]*$" "part of a volume: write letters, digits and . _ - /, with no / or . first")
  "tag" (list "^[A-Za-z0-9_][A-Za-z0-9._-]{0,127}$" "tag of an image: write at most 128 letters, digits and . _ -, with no . or - first")
  "digest" (list "^sha256:[0-9a-f]{64}$" "digest of an image: write sha256: and its 64 digits (0-9, a-f), as the registry shows them")
  "repository" (list "^[a-z0-9]+([._-]+[a-z0-9]+)*(:[0-9]+)?(/[a-z0-9]+([._-]+[a-z0-9]+)*)*$" "name of an image: write REGISTRY/NAME, such as registry.example.org/loadgrid, without https://")
  "version" (list "^[0-9]+\\.[0-9]+\\.[0-9]+$" "version of Ray: write three numbers, such as 2.60.0")
  "resource" (list "^[a-z0-9.-]+/[A-Za-z0-9._-]+$" "resource of Kubernetes: write VENDOR/NAME, such as nvidia.com/gpu")
  "duration" (list "^([0-9]+(ms|s|m|h))+$" "duration: write a number and ms, s, m or h, such as 1s")
  "variable" (list "^[A-Za-z_][A-Za-z0-9_]*$" "name of an environment variable: write letters, digits and _, with no digit first")
-}}
{{- $kind := get $kinds (index . 0) -}}
{{- if not (regexMatch (index $kind 0) (index . 2)) -}}
{{- fail (printf "\n%s is %q, which is no %s\n" (index . 1) (index . 2) (index $kind 1)) -}}
{{- end -}}
{{- end }}

{{- define "loadgrid.check.image" -}}
{{- $tag := regexFind ":[^/]*$" .repository -}}
{{- if contains "@" .repository -}}
{{- fail (printf "\nimage.repository is %q, with a digest in it: write the digest in image.digest\n" .repository) -}}
{{- else if $tag -}}
{{- fail (printf "\nimage.repository is %q, with a tag in it: write image.repository %s and image.tag %s\n" .repository (trimSuffix $tag .repository) (trimPrefix ":" $tag)) -}}
{{- else if ne .repository (lower .repository) -}}
{{- fail (printf "\nimage.repository is %q, and the name of an image has no capitals: write your registry's own name, such as registry.example.org/loadgrid\n" .repository) -}}
{{- end -}}
{{- include "loadgrid.is" (list "repository" "image.repository" .repository) -}}
{{- if .tag -}}{{- include "loadgrid.is" (list "tag" "image.tag" .tag) -}}{{- end -}}
{{- if .digest -}}{{- include "loadgrid.is" (list "digest" "image.digest" .digest) -}}{{- end -}}
{{- range $number, $name := .pullSecrets -}}
{{- include "loadgrid.is" (list "name" (printf "image.pullSecrets[%d]" $number) $name) -}}
{{- end -}}
{{- end }}

{{/* A pod's memory and variables: a list of its place and its values. */}}
{{- define "loadgrid.check.pod" -}}
{{- $where := index . 0 -}}
{{- $pod := index . 1 -}}
{{- include "loadgrid.is" (list "amount" (printf "%s.memory" $where) $pod.memory) -}}
{{- if hasKey $pod "shm" -}}
{{- include "loadgrid.is" (list "amount" (printf "%s.shm" $where) $pod.shm) -}}
{{- if gt (include "loadgrid.bytes" $pod.shm | float64) (include "loadgrid.bytes" $pod.memory | float64) -}}
{{- fail (printf "\n%s.shm is %s, more than %s.memory, %s, of which it is a part: lower shm or raise memory\n" $where $pod.shm $where $pod.memory) -}}
{{- end -}}
{{- end -}}
{{- range $number, $variable := $pod.env -}}
{{- include "loadgrid.is" (list "variable" (printf "%s.env[%d].name" $where $number) $variable.name) -}}
{{- end -}}
{{- end }}

{{- define "loadgrid.bytes" -}}
{{- $units := dict "k" 1e3 "M" 1e6 "G" 1e9 "T" 1e12 "Ki" 1024 "Mi" 1048576 "Gi" 1073741824 "Ti" 1099511627776 -}}
{{- mulf (regexFind "^[0-9.]+" .) (get $units (regexFind "[A-Za-z]+$" .)) -}}
{{- end }}

{{/* A volume of `data`: a list of its place and its values. */}}
{{- define "loadgrid.check.volume" -}}
{{- $where := index . 0 -}}
{{- $volume := index . 1 -}}
{{- include "loadgrid.is" (list "volume" (printf "%s.name" $where) $volume.name) -}}
{{- include "loadgrid.is" (list "path" (printf "%s.mountPath" $where) $volume.mountPath) -}}
{{- if hasKey $volume "subPath" -}}
{{- include "loadgrid.is" (list "part" (printf "%s.subPath" $where) $volume.subPath) -}}
{{- if has ".." (splitList "/" $volume.subPath) -}}
{{- fail (printf "\n%s.subPath is %q, and leads back: write it without ..\n" $where $volume.subPath) -}}
{{- end -}}
{{- end -}}
{{- $path := clean $volume.mountPath -}}
{{- $ours := list "/dev/shm" "/etc/loadgrid/manifests" -}}
{{- if not (or (has $path $ours) (and (hasPrefix "/etc/loadgrid/" $path) (not (hasPrefix "/etc/loadgrid/manifests/" $path)))) -}}
{{- range list "/bin" "/dev" "/etc" "/lib" "/lib64" "/opt/loadgrid" "/proc" "/sbin" "/sys" "/usr" -}}
{{- if or (eq $path "/") (hasPrefix (printf "%s/" .) (printf "%s/" $path)) (hasPrefix (printf "%s/" $path) .) -}}
{{- fail (printf "\n%s.mountPath is %s, which hides %s of the image or a part of it: choose another, such as /etc/loadgrid/data\n" $where $volume.mountPath .) -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- $known := list "persistentVolumeClaim" "hostPath" "nfs" "csi" "ephemeral" "image" "configMap" "secret" "projected" "emptyDir" "iscsi" "fc" -}}
{{- $known = concat $known (list "cephfs" "rbd" "glusterfs" "cinder" "portworxVolume" "azureFile" "azureDisk" "awsElasticBlockStore" "gcePersistentDisk" "vsphereVolume" "flexVolume") -}}
{{- range $source, $_ := $volume.source -}}
{{- if not (has $source $known) -}}
{{- fail (printf "\n%s.source is %q, which is no kind of volume in Kubernetes: write persistentVolumeClaim, hostPath, nfs or another of its kinds\n" $where $source) -}}
{{- end -}}
{{- end -}}
{{- end }}
