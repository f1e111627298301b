{{/* Names. Everything that is namespaced is RELEASE-PART; cluster-wide objects carry the namespace too, because
     several installations may live in one cluster. */}}
{{- define "sheaf.fullname" -}}
{{- .Values.fullnameOverride | default .Release.Name | trunc 40 | trimSuffix "-" -}}
{{- end -}}

{{- define "sheaf.clusterName" -}}
{{- printf "%s-%s" (include "sheaf.fullname" .) .Release.Namespace | trunc 200 | trimSuffix "-" -}}
{{- end -}}

{{- define "sheaf.operatorName" -}}{{ include "sheaf.fullname" . }}-operator{{- end -}}
{{/* The Lease of the one writer: of the namespace, not of the release, so that operators of two releases never act at once. */}}
{{- define "sheaf.leaseName" -}}sheaf-operator{{- end -}}
{{- define "sheaf.gatewayName" -}}{{ include "sheaf.fullname" . }}-gateway{{- end -}}
{{- define "sheaf.redisName" -}}{{ include "sheaf.fullname" . }}-redis{{- end -}}

{{- define "sheaf.agentTokenSecret" -}}
{{- .Values.agentToken.existingSecret | default (printf "%s-agent-token" (include "sheaf.fullname" .)) -}}
{{- end -}}

{{- define "sheaf.apiKeysSecret" -}}
{{- with .Values.gateway.apiKeys -}}
{{- if .existingSecret -}}{{ .existingSecret }}
{{- else if .keys -}}{{ include "sheaf.gatewayName" $ }}-keys
{{- end -}}
{{- end -}}
{{- end -}}

{{- define "sheaf.cacheSaltSecret" -}}
{{- .Values.gateway.cacheSalt.existingSecret | default (printf "%s-cache-salt" (include "sheaf.gatewayName" .)) -}}
{{- end -}}

{{/* The Secret with the URL of the Redis in which gateways count together; empty: each counts alone. */}}
{{- define "sheaf.sharedLimitsSecret" -}}
{{- $other := .Values.gateway.sharedLimits.existingSecret -}}
{{- if and $other .Values.redis.enabled -}}
{{- fail "gateway.sharedLimits.existingSecret names a Redis of yours, so redis.enabled would run one that nobody uses: set only one of them" -}}
{{- end -}}
{{- $other | default (ternary (include "sheaf.redisName" .) "" .Values.redis.enabled) -}}
{{- end -}}

{{- define "sheaf.operatorServiceAccount" -}}
{{- .Values.operator.serviceAccount.name | default (ternary (include "sheaf.operatorName" .) "default" .Values.operator.serviceAccount.create) -}}
{{- end -}}

{{- define "sheaf.gatewayServiceAccount" -}}
{{- .Values.gateway.serviceAccount.name | default (ternary (include "sheaf.gatewayName" .) "default" .Values.gateway.serviceAccount.create) -}}
{{- end -}}

{{/* Labels: of the chart (context: root), of a part (dict root part), and the selector of a part. */}}
{{- define "sheaf.labels" -}}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" | trunc 63 | trimSuffix "-" }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
app.kubernetes.io/part-of: sheaf
{{- with .Values.commonLabels }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{- define "sheaf.partLabels" -}}
{{ include "sheaf.selector" . }}
app.kubernetes.io/component: {{ .part }}
{{ include "sheaf.labels" .root }}
{{- end -}}

{{- define "sheaf.selector" -}}
app.kubernetes.io/name: sheaf-{{ .part }}
app.kubernetes.io/instance: {{ .root.Release.Name }}
{{- end -}}

{{/* The pods that the operator makes. */}}
{{- define "sheaf.engineSelector" -}}
app.kubernetes.io/name: sheaf-engine
app.kubernetes.io/managed-by: sheaf
{{- end -}}

{{/* REGISTRY/REPOSITORY@DIGEST or :TAG (dict root image); a digest wins over a tag. */}}
{{- define "sheaf.image" -}}
{{- $name := .image.repository -}}
{{- with .root.Values.image.registry -}}{{- $name = printf "%s/%s" (trimSuffix "/" .) $name -}}{{- end -}}
{{- if .image.digest -}}
{{- printf "%s@%s" $name .image.digest -}}
{{- else -}}
{{- printf "%s:%s" $name (.image.tag | default .root.Values.image.tag | default .root.Chart.AppVersion) -}}
{{- end -}}
{{- end -}}

{{/* What the pods of every part share, below `spec:` (dict root part values). */}}
{{- define "sheaf.podSpec" -}}
{{- with .root.Values.imagePullSecrets }}
imagePullSecrets:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .values.priorityClassName }}
priorityClassName: {{ . }}
{{- end }}
securityContext:
  {{- toYaml .values.podSecurityContext | nindent 2 }}
enableServiceLinks: false
{{- with .values.nodeSelector }}
nodeSelector:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .values.tolerations }}
tolerations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .values.affinity }}
affinity:
  {{- toYaml . | nindent 2 }}
{{- end }}
topologySpreadConstraints:
{{- if .values.topologySpreadConstraints }}
  {{- toYaml .values.topologySpreadConstraints | nindent 2 }}
{{- else }}
{{- range list "topology.kubernetes.io/zone" "kubernetes.io/hostname" }}
  - topologyKey: {{ . }}
    maxSkew: 1
    whenUnsatisfiable: ScheduleAnyway
    labelSelector:
      matchLabels:
        {{- include "sheaf.selector" $ | nindent 8 }}
{{- end }}
{{- end }}
{{- end -}}

{{/* The gateway's address inside the cluster. */}}
{{- define "sheaf.gatewayUrl" -}}
http://{{ include "sheaf.gatewayName" . }}.{{ .Release.Namespace }}.svc:{{ int .Values.gateway.service.port }}
{{- end -}}

{{/* Metadata of the CRDs, inserted by charts/generate.py. */}}
{{- define "sheaf.crdMetadata" -}}
labels:
  {{- include "sheaf.labels" . | nindent 2 }}
{{- if .Values.crds.keep }}
annotations:
  helm.sh/resource-policy: keep
{{- end }}
{{- end -}}

{{/* A secret word (dict root secret key value): given, or the one that the cluster holds already, or a new one. */}}
{{- define "sheaf.secretWord" -}}
{{- $held := (lookup "v1" "Secret" .root.Release.Namespace .secret) | default dict -}}
{{- $word := get ($held.data | default dict) .key -}}
{{- if .value -}}
{{- .value -}}
{{- else if $word -}}
{{- $word | b64dec -}}
{{- else -}}
{{- randAlphaNum 48 -}}
{{- end -}}
{{- end -}}

{{/* Fails where another release's operator runs in the namespace: each would make every pod anew after its own settings. */}}
{{- define "sheaf.oneOperator" -}}
{{- if gt (int .Values.operator.replicas) 0 -}}
{{- range ((lookup "apps/v1" "Deployment" .Release.Namespace "").items | default list) -}}
{{- $labels := .metadata.labels | default dict -}}
{{- $release := get $labels "app.kubernetes.io/instance" -}}
{{- if and (eq (get $labels "app.kubernetes.io/name") "sheaf-operator") (ne $release $.Release.Name) (gt (int .spec.replicas) 0) -}}
{{- fail (printf "the operator of the release %s serves the namespace %s already, and one release serves a namespace: install this one into another namespace, uninstall %s first, or set operator.replicas to 0 in one of the two" $release $.Release.Namespace $release) -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- end -}}
