{{/* The pod of a Deployment and of a DaemonSet. */}}
{{- define "warmpath.pod" -}}
{{- $isNode := eq .Values.kind "DaemonSet" -}}
metadata:
  labels:
    {{- include "warmpath.labels" . | nindent 4 }}
    {{- with .Values.podLabels }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
  {{- with .Values.podAnnotations }}
  annotations:
    {{- toYaml . | nindent 4 }}
  {{- end }}
spec:
  serviceAccountName: {{ include "warmpath.serviceAccount" . }}
  automountServiceAccountToken: {{ not (empty (dig "discovery" "kubernetes" list .Values.config)) }}
  {{- with .Values.image.pullSecrets }}
  imagePullSecrets:
    {{- toYaml . | nindent 4 }}
  {{- end }}
  {{- if and $isNode .Values.bareMetal.hostNetwork }}
  hostNetwork: true
  dnsPolicy: ClusterFirstWithHostNet
  {{- end }}
  # Time for preStop, for requests in flight, and to end.
  terminationGracePeriodSeconds: {{ add .Values.preStopSeconds .Values.drainSeconds 10 }}
  securityContext:
    {{- if $isNode }}
    # Root without its capabilities, but for three: a container gives capabilities to no other user.
    runAsUser: 0
    {{- else }}
    runAsNonRoot: true
    runAsUser: 65532
    runAsGroup: 65532
    {{- end }}
    seccompProfile:
      type: RuntimeDefault
  containers:
    - name: warmpath
      image: "{{ .Values.image.repository }}:{{ .Values.image.tag | default .Chart.AppVersion }}"
      imagePullPolicy: {{ .Values.image.pullPolicy }}
      # The image's own command has another address.
      args: [serve, --config, /etc/warmpath/warmpath.yaml]
      env:
        - name: WARMPATH_ADMIN_TOKEN
          valueFrom:
            secretKeyRef:
              name: {{ include "warmpath.tokenSecret" . }}
              key: {{ .Values.adminToken.key }}
        {{- with .Values.env }}
        {{- toYaml . | nindent 8 }}
        {{- end }}
      {{- with .Values.envFrom }}
      envFrom:
        {{- toYaml . | nindent 8 }}
      {{- end }}
      ports:
        - name: http
          containerPort: {{ .Values.ports.http }}
        - name: admin
          containerPort: {{ .Values.ports.admin }}
      # Ready while at least one worker can be asked.
      readinessProbe:
        httpGet: { path: /ready, port: admin }
        periodSeconds: 2
        failureThreshold: 2
      # Whether the process answers, whatever its workers do.
      livenessProbe:
        httpGet: { path: /health, port: admin }
        periodSeconds: 10
        timeoutSeconds: 5
        failureThreshold: 3
      startupProbe:
        httpGet: { path: /health, port: admin }
        periodSeconds: 1
        failureThreshold: 60
      lifecycle:
        preStop:
          exec:
            command: [sleep, {{ .Values.preStopSeconds | quote }}]
      securityContext:
        allowPrivilegeEscalation: false
        readOnlyRootFilesystem: true
        capabilities:
          drop: [ALL]
          {{- if $isNode }}
          {{- with .Values.bareMetal.capabilities }}
          add:
            {{- toYaml . | nindent 12 }}
          {{- end }}
          {{- end }}
      {{- with .Values.resources }}
      resources:
        {{- toYaml . | nindent 8 }}
      {{- end }}
      volumeMounts:
        - name: config
          mountPath: /etc/warmpath
          readOnly: true
        {{- if $isNode }}
        - name: bpffs
          mountPath: /sys/fs/bpf
        {{- end }}
        {{- with .Values.extraVolumeMounts }}
        {{- toYaml . | nindent 8 }}
        {{- end }}
  volumes:
    - name: config
      configMap:
        name: {{ include "warmpath.fullname" . }}
    {{- if $isNode }}
    - name: bpffs
      hostPath:
        path: {{ .Values.bareMetal.bpffs }}
        type: Directory
    {{- end }}
    {{- with .Values.extraVolumes }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
  {{- with .Values.nodeSelector }}
  nodeSelector:
    {{- toYaml . | nindent 4 }}
  {{- end }}
  {{- with .Values.tolerations }}
  tolerations:
    {{- toYaml . | nindent 4 }}
  {{- end }}
  {{- with .Values.affinity }}
  affinity:
    {{- toYaml . | nindent 4 }}
  {{- end }}
  {{- with .Values.topologySpreadConstraints }}
  topologySpreadConstraints:
    {{- toYaml . | nindent 4 }}
  {{- end }}
  {{- with .Values.priorityClassName }}
  priorityClassName: {{ . }}
  {{- end }}
{{- end -}}
