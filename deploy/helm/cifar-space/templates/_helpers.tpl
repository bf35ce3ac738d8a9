{{- define "cifar.name" -}}
{{- printf "%s-cifar-space" .Release.Name | trunc 50 | trimSuffix "-" -}}
{{- end -}}

{{- define "cifar.labels" -}}
app.kubernetes.io/name: cifar-space
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end -}}

{{- define "cifar.metadata" -}}
name: {{ .name }}
labels:
  {{- include "cifar.labels" .root | nindent 2 }}
  app.kubernetes.io/component: {{ .component }}
  app.kubernetes.io/version: {{ .root.Chart.AppVersion | quote }}
  helm.sh/chart: {{ printf "%s-%s" .root.Chart.Name .root.Chart.Version }}
{{- end -}}

{{- define "cifar.selector" -}}
{{ include "cifar.labels" .root }}
app.kubernetes.io/component: {{ .component }}
{{- end -}}

{{- define "cifar.image" -}}
{{- $image := .Values.image -}}
{{- if $image.digest -}}
{{ $image.repository }}@{{ $image.digest }}
{{- else -}}
{{ $image.repository }}:{{ $image.tag | default .Chart.AppVersion }}
{{- end -}}
{{- end -}}

{{- /* No root user and the default seccomp profile. */ -}}
{{- define "cifar.podSecurity" -}}
runAsNonRoot: true
runAsUser: {{ .uid }}
runAsGroup: {{ .uid }}
fsGroup: {{ .uid }}
seccompProfile: {type: RuntimeDefault}
{{- end -}}

{{- /* Pull secrets, node selector and tolerations of every pod. */ -}}
{{- define "cifar.placement" -}}
{{- with .Values.image.pullSecrets }}
imagePullSecrets:
  {{- range . }}
  - name: {{ . }}
  {{- end }}
{{- end }}
{{- with .Values.nodeSelector }}
nodeSelector:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .Values.tolerations }}
tolerations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end -}}

{{- define "cifar.containerSecurity" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities: {drop: [ALL]}
{{- end -}}

{{- define "cifar.modelVolume" -}}
{{- if eq .Values.models.source "claim" }}
- name: models
  persistentVolumeClaim:
    claimName: {{ .Values.models.claim.existing | default (printf "%s-models" (include "cifar.name" .)) }}
    {{- if not .Values.models.writable }}
    readOnly: true
    {{- end }}
{{- else if eq .Values.models.source "init" }}
- name: models
  emptyDir: {}
{{- end }}
{{- end -}}

{{- define "cifar.modelInit" -}}
{{- if eq .Values.models.source "init" }}
initContainers:
  - name: models
    image: {{ required "models.source init needs models.init.image, the image with the models." .Values.models.init.image }}
    command: [cp, -r, /models/., /registry/]
    securityContext:
      {{- include "cifar.containerSecurity" . | nindent 6 }}
    resources:
      requests: {cpu: 50m, memory: 64Mi}
      limits: {cpu: 500m, memory: 256Mi}
    volumeMounts:
      - {name: models, mountPath: /registry}
{{- end }}
{{- end -}}

{{- /* nginx answers health checks for the host localhost, whatever NGINX_HOSTS says. */ -}}
{{- define "cifar.probe" -}}
httpGet:
  path: {{ . }}
  port: http
  httpHeaders: [{name: Host, value: localhost}]
timeoutSeconds: 4
{{- end -}}
