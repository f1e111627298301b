{{/* The processes' configuration files, as JSON. What the chart itself decides wins over what a user writes. */}}
{{- define "sheaf.operatorConfig" -}}
{{- $images := dict "pullPolicy" .Values.image.pullPolicy -}}
{{- range $name, $image := .Values.engines.images -}}
{{- if $image.repository -}}
{{- $_ := set $images $name (include "sheaf.image" (dict "root" $ "image" $image)) -}}
{{- end -}}
{{- end -}}
{{- $secrets := list -}}
{{- range .Values.imagePullSecrets -}}{{- $secrets = append $secrets .name -}}{{- end -}}
{{- if $secrets -}}{{- $_ := set $images "pullSecrets" $secrets -}}{{- end -}}
{{- $pods := mustMerge
      (dict "images" $images "agentTokenSecret" (include "sheaf.agentTokenSecret" .))
      (omit .Values.engines "images" | deepCopy) -}}
{{- if ne .Values.notices.cloud "none" -}}
{{- $notices := pick .Values.notices "cloud" "rebalance" -}}
{{- with .Values.notices.endpoint -}}{{- $_ := set $notices "endpoint" . -}}{{- end -}}
{{- $_ := set $pods "notices" $notices -}}
{{- end -}}
{{- $config := dict
      "namespace" .Release.Namespace
      "leaseName" (include "sheaf.leaseName" .)
      "listen" ":8080"
      "agentTokenFile" "/etc/sheaf/agent-token/token"
      "pods" $pods -}}
{{- if .Values.market -}}{{- $_ := set $config "market" .Values.market -}}{{- end -}}
{{- if .Values.operator.speeds -}}{{- $_ := set $config "speeds" .Values.operator.speeds -}}{{- end -}}
{{- mustToPrettyJson $config -}}
{{- end -}}

{{- define "sheaf.gatewayConfig" -}}
{{- $times := mustMergeOverwrite (deepCopy .Values.gateway.times) (dict
      "shutdown" (printf "%ds" (int .Values.gateway.shutdownSeconds))
      "lameDuck" (printf "%ds" (int .Values.gateway.lameDuckSeconds))) -}}
{{- $config := dict
      "listen" ":8000"
      "fleetFile" "/var/lib/sheaf/fleet.json"
      "agentTokenFile" "/etc/sheaf/agent-token/token"
      "workers" (int .Values.gateway.workers)
      "accessLog" .Values.gateway.accessLog
      "limits" .Values.gateway.limits
      "times" $times
      "kubernetes" (dict "enabled" true "namespace" .Release.Namespace) -}}
{{- if .Values.gateway.peers.enabled -}}
{{- $labels := printf "app.kubernetes.io/name=sheaf-gateway,app.kubernetes.io/instance=%s" .Release.Name -}}
{{- $_ := set $config "peers" (dict "listen" (printf ":%d" (int .Values.gateway.peers.port)) "pods" $labels) -}}
{{- end -}}
{{- $_ := set $config "saltSecretFile" "/etc/sheaf/cache-salt/salt" -}}
{{- if include "sheaf.sharedLimitsSecret" . -}}
{{- $shared := omit .Values.gateway.sharedLimits "existingSecret" "prefix" -}}
{{- $_ := set $shared "urlFile" "/etc/sheaf/shared-limits/url" -}}
{{- $_ := set $shared "prefix" (.Values.gateway.sharedLimits.prefix | default .Release.Namespace) -}}
{{- $_ := set $config "sharedLimits" $shared -}}
{{- end -}}
{{- if include "sheaf.apiKeysSecret" . -}}
{{- $_ := set $config "keysFile" "/etc/sheaf/keys/keys.yaml" -}}
{{- end -}}
{{- mustToPrettyJson $config -}}
{{- end -}}
