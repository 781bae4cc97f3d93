{{/* Parts of pods. */}}

{{/* Argument: dict root, of (values with nodeSelector, tolerations, affinity), labels (of the pod),
registry (whether it mounts the registry), grace. */}}
{{- define "onesearch.podSettings" -}}
serviceAccountName: {{ include "onesearch.serviceAccount" .root }}
automountServiceAccountToken: false
enableServiceLinks: false
terminationGracePeriodSeconds: {{ .grace }}
securityContext:
  {{- toYaml .root.Values.podSecurityContext | nindent 2 }}
{{- with .root.Values.image.pullSecrets }}
imagePullSecrets:
  {{- range . }}
  - name: {{ . }}
  {{- end }}
{{- end }}
{{- with .of.nodeSelector }}
nodeSelector:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .of.tolerations }}
tolerations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- if .of.affinity }}
affinity:
  {{- toYaml .of.affinity | nindent 2 }}
{{- else if and .registry .root.Values.persistence.registry.oneNode }}
affinity:
  podAffinity:
    requiredDuringSchedulingIgnoredDuringExecution:
      - topologyKey: kubernetes.io/hostname
        labelSelector:
          matchLabels:
            app.kubernetes.io/instance: {{ .root.Release.Name }}
            onesearch/registry: mounted
{{- end }}
{{- end -}}

{{- define "onesearch.containerSecurity" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities: {drop: [ALL]}
{{- end -}}

{{/* Where a program finds its settings file and Redis. Argument: dict root, file, env. */}}
{{- define "onesearch.environment" -}}
- {name: ONESEARCH_CONFIG, value: /etc/onesearch/{{ .file }}}
{{- if .root.Values.redis.bundled }}
- name: REDIS_PASSWORD
  valueFrom:
    secretKeyRef: {name: {{ include "onesearch.redisSecret" .root }}, key: redis-password}
- name: ONESEARCH_REDIS_URL
  value: redis://:$(REDIS_PASSWORD)@{{ include "onesearch.fullname" .root }}-redis:6379/0
{{- else }}
- name: ONESEARCH_REDIS_URL
  valueFrom:
    secretKeyRef:
      name: {{ required "redis.external.existingSecret: name the Secret with Redis's address, or set redis.bundled" .root.Values.redis.external.existingSecret }}
      key: {{ .root.Values.redis.external.secretKey }}
{{- end }}
{{- with .env }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{/* Argument: dict root, registry ("" , ro or rw), work. */}}
{{- define "onesearch.mounts" -}}
- {name: settings, mountPath: /etc/onesearch, readOnly: true}
- {name: tmp, mountPath: /tmp}
- {name: cache, mountPath: /cache}
{{- if .work }}
- {name: work, mountPath: /srv/onesearch/var}
{{- end }}
- {name: registry, mountPath: /srv/onesearch/var/registry{{ if eq .registry "ro" }}, readOnly: true{{ end }}}
{{- end -}}

{{- define "onesearch.volumes" -}}
- name: settings
  configMap: {name: {{ include "onesearch.fullname" .root }}-settings}
- name: tmp
  emptyDir: {}
- name: cache
  emptyDir: {}
{{- if .work }}
- name: work
  persistentVolumeClaim: {claimName: {{ include "onesearch.claim" (dict "root" .root "volume" "work") }}}
{{- end }}
- name: registry
  persistentVolumeClaim: {claimName: {{ include "onesearch.claim" (dict "root" .root "volume" "registry") }}}
{{- end -}}

{{/* Settings over settings, the last ones win; the first list is the shop's, the second one ours.
Argument: dict given, ours (lists of dicts). */}}
{{- define "onesearch.settingsFile" -}}
{{- $ours := list "host" "port" "metrics_host" "registry" "champion" "snapshot" "checkpoint" "engine" "redis_directory" "drain_s" "shutdown_s" "keyword_drain_s" "keyword_generator" "keyword_llm_url" "keyword_llm_model" -}}
{{- $secret := list "redis_url" "keyword_llm_key" "keys_file" "metrics_public" -}}
{{- $all := dict -}}
{{- range .given -}}
{{- range $name, $value := . -}}
{{- if has $name $ours }}{{ fail (printf "settings.%s: the chart sets it; see shutdown, worker, gateways and persistence in values.yaml" $name) }}{{ end -}}
{{- if has $name $secret }}{{ fail (printf "settings.%s: settings are a ConfigMap; this one comes from a Secret, see keys, redis and worker.llm in values.yaml" $name) }}{{ end -}}
{{- end -}}
{{- $all = mustMergeOverwrite $all (deepCopy .) -}}
{{- end -}}
{{- range .ours -}}{{- $all = mustMergeOverwrite $all (deepCopy .) -}}{{- end -}}
{{- toToml $all | trim -}}
{{- end -}}
