{{/* A manifest's text, with the chart's ports and metrics address where the manifest leaves them open; the address only
where a NetworkPolicy of the chart guards the port, elsewhere it stays LoadGrid's own, 127.0.0.1. The text is edited
and not parsed and printed again: seeds of 64 bits would lose digits, and the record holds the user's bytes. */}}
{{- define "loadgrid.manifest" -}}
{{- $where := printf "manifests.%s" .name -}}
{{- $read := fromJson (include "loadgrid.manifest.read" .) -}}
{{- $dispatch := $read.dispatch | default dict -}}
{{- $metrics := $read.metrics | default dict -}}
{{- $ports := .root.Values.dispatch.ports | toJson -}}
{{- $port := .root.Values.metrics.port -}}
{{- if and $dispatch.ports (ne ($dispatch.ports | toJson) $ports) -}}
{{- fail (printf "\n%s sets dispatch.ports %s, but the value dispatch.ports, which the NetworkPolicy opens, is %s: make them equal, or take the line out of the manifest\n" $where ($dispatch.ports | toJson) $ports) -}}
{{- end -}}
{{- if not (or (kindIs "invalid" $metrics.port) (eq ($metrics.port | toString) ($port | toString))) -}}
{{- fail (printf "\n%s sets metrics.port %v, but the value metrics.port, which Prometheus is told, is %v: make them equal, or take the line out of the manifest\n" $where $metrics.port $port) -}}
{{- end -}}
{{- $add := list -}}
{{- $guarded := and .root.Values.networkPolicy.enabled (not .root.Values.cluster.existing) -}}
{{- if and $guarded (not $metrics.listen) -}}{{- $add = append $add (dict "section" "metrics" "field" "listen" "value" "0.0.0.0") -}}{{- end -}}
{{- if not (hasKey $metrics "port") -}}{{- $add = append $add (dict "section" "metrics" "field" "port" "value" ($port | toString)) -}}{{- end -}}
{{- if not $dispatch.ports -}}{{- $add = append $add (dict "section" "dispatch" "field" "ports" "value" $ports) -}}{{- end -}}
{{- $text := .text -}}
{{- range $add -}}
{{- $text = include "loadgrid.manifest.add" (merge (dict "text" $text "where" $where) .) -}}
{{- end -}}
{{- $text -}}
{{- end }}

{{/* A manifest as JSON, to look into; whatever its text, the sections that the chart looks at are mappings. */}}
{{- define "loadgrid.manifest.read" -}}
{{- $where := printf "manifests.%s" .name -}}
{{- if not (kindIs "string" .text) -}}
{{- fail (printf "\n%s is not the text of a manifest. Helm splits names at dots: in a name with a dot write \\. for it, such as --set-file 'manifests.bert-99\\.9=FILE.yaml', and leave .yaml out of the name\n" $where) -}}
{{- else if gt (len .text) 131072 -}}
{{- fail (printf "\n%s is longer than 128 KiB, which is no manifest\n" $where) -}}
{{- end -}}
{{- $read := fromYaml .text -}}
{{- if or (hasKey $read "Error") (not $read) -}}
{{- fail (printf "\n%s is not a manifest: it must be the text of a YAML file, such as --set-file %s=FILE.yaml\n" $where $where) -}}
{{- end -}}
{{- range list "dispatch" "metrics" "workers" -}}
{{- if and (hasKey $read .) (not (kindIs "map" (index $read .))) -}}
{{- fail (printf "\n%s: its section %s must hold fields: `loadgrid plan` tells more\n" $where .) -}}
{{- end -}}
{{- end -}}
{{- $workers := $read.workers | default dict -}}
{{- range list "count" "num_cpus" "num_gpus" -}}
{{- if and (hasKey $workers .) (not (kindIs "float64" (index $workers .))) -}}
{{- fail (printf "\n%s has workers.%s: %s, which is no number: `loadgrid plan` tells more\n" $where . (index $workers . | toJson)) -}}
{{- end -}}
{{- end -}}
{{- toJson $read -}}
{{- end }}

{{/* A text with one field more in a section, which is made if it is not there. */}}
{{- define "loadgrid.manifest.add" -}}
{{- $line := printf "%s: %s" .field .value -}}
{{- $flow := printf "(?m)^%s:([ \\t]*)\\{" .section -}}
{{- $block := printf "(?m)^%s:([ \\t]*(?:#.*)?)\\n((?:[ \\t]*(?:#.*)?\\n)*)([ \\t]+)" .section -}}
{{- $text := "" -}}
{{- if not (hasKey (fromYaml .text) .section) -}}
{{- $text = printf "%s\n\n%s: {%s} # by the chart\n" (trimSuffix "\n" .text) .section $line -}}
{{- else if regexMatch $flow .text -}}
{{- $text = regexReplaceAll $flow .text (printf "%s:${1}{%s, " .section $line) -}}
{{- else -}}
{{- $text = regexReplaceAll $block .text (printf "%s:${1}\n${2}${3}%s # by the chart\n${3}" .section $line) -}}
{{- end -}}
{{- $read := index (fromYaml $text) .section -}}
{{- if not (and (kindIs "map" $read) (hasKey $read .field)) -}}
{{- fail (printf "\n%s: the chart cannot add `%s` to the section %s: write it there yourself\n" .where $line .section) -}}
{{- end -}}
{{- $text -}}
{{- end }}
