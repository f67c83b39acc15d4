{{- define "proxy-agent.name" -}}
{{- default .Chart.Name .Values.nameOverride | trunc 63 | trimSuffix "-" -}}
{{- end -}}

{{- define "proxy-agent.fullname" -}}
{{- if .Values.fullnameOverride -}}
{{- .Values.fullnameOverride | trunc 52 | trimSuffix "-" -}}
{{- else if contains .Chart.Name .Release.Name -}}
{{- .Release.Name | trunc 52 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-%s" .Release.Name (include "proxy-agent.name" .) | trunc 52 | trimSuffix "-" -}}
{{- end -}}
{{- end -}}

{{- define "proxy-agent.selector" -}}
app.kubernetes.io/name: {{ include "proxy-agent.name" . }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end -}}

{{- define "proxy-agent.labels" -}}
{{ include "proxy-agent.selector" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version }}
{{- end -}}

{{- define "proxy-agent.serviceAccount" -}}
{{- default (include "proxy-agent.fullname" .) .Values.serviceAccount.name -}}
{{- end -}}

{{- define "proxy-agent.image" -}}
{{- $repository := required "image.repository: where has the image been pushed that `cargo xtask image` makes?" .Values.image.repository -}}
{{- if .Values.image.digest -}}
{{- printf "%s@%s" $repository .Values.image.digest -}}
{{- else -}}
{{- printf "%s:%s" $repository (default .Chart.AppVersion .Values.image.tag) -}}
{{- end -}}
{{- end -}}

{{- define "proxy-agent.configMap" -}}
{{- default (include "proxy-agent.fullname" .) .Values.existingConfigMap -}}
{{- end -}}

{{/* Whether the agent loads eBPF programs. */}}
{{- define "proxy-agent.usesEbpf" -}}
{{- if has .Values.mode (list "auto" "ebpf") }}true{{ end -}}
{{- end -}}

{{/* Whether it touches what is pinned on the bpf file system. */}}
{{- define "proxy-agent.touchesPins" -}}
{{- if or (include "proxy-agent.usesEbpf" .) .Values.switchFromEbpf }}true{{ end -}}
{{- end -}}

{{/* The least rights that work, by mode; the chart's README says what each is for. */}}
{{- define "proxy-agent.capabilities" -}}
{{- $capabilities := list "NET_ADMIN" -}}
{{- if include "proxy-agent.usesEbpf" . -}}
{{- $capabilities = concat $capabilities (list "BPF" "PERFMON") -}}
{{- end -}}
{{- concat $capabilities .Values.securityContext.extraCapabilities | uniq | toJson -}}
{{- end -}}

{{- define "proxy-agent.appArmorProfile" -}}
{{- $usual := ternary "Unconfined" "RuntimeDefault" (not (empty (include "proxy-agent.touchesPins" .))) -}}
{{- default $usual .Values.securityContext.appArmorProfile -}}
{{- end -}}

{{/* KubeProxyConfiguration: the chart's own choices, under those of the values. */}}
{{- define "proxy-agent.kubeProxyConfiguration" -}}
{{- $config := dict "apiVersion" "kubeproxy.config.k8s.io/v1alpha1" "kind" "KubeProxyConfiguration" -}}
{{- $_ := set $config "mode" .Values.mode -}}
{{- $_ := set $config "oomScoreAdj" (int .Values.oomScoreAdj) -}}
{{- $port := int .Values.metrics.port -}}
{{- $all := ternary "[::]" "0.0.0.0" (contains ":" (default "" .Values.kubeProxyConfiguration.bindAddress)) -}}
{{- $address := .Values.metrics.bindAddress -}}
{{- if and (not $address) .Values.serviceMonitor.enabled -}}
{{- $address = $all -}}
{{- end -}}
{{- if $address -}}
{{- $bare := trimAll "[]" $address -}}
{{- $_ := set $config "metricsBindAddress" (printf "%s:%d" (ternary (printf "[%s]" $bare) $bare (contains ":" $bare)) $port) -}}
{{- else if ne $port 10249 -}}
{{- $_ := set $config "metricsBindAddress" (printf "127.0.0.1:%d" $port) -}}
{{- end -}}
{{- if ne (int .Values.healthz.port) 10256 -}}
{{- $_ := set $config "healthzBindAddress" (printf "%s:%d" $all (int .Values.healthz.port)) -}}
{{- end -}}
{{- if not .Values.initContainer.enabled -}}
{{- /* 0 leaves a setting as it is: the agent may not write it. */ -}}
{{- $_ := set $config "conntrack" (dict "maxPerCore" 0 "min" 0 "tcpEstablishedTimeout" "0s" "tcpCloseWaitTimeout" "0s") -}}
{{- end -}}
{{- mergeOverwrite $config (deepCopy .Values.kubeProxyConfiguration) | toYaml -}}
{{- end -}}

{{- define "proxy-agent.proxyAgentConfiguration" -}}
{{- $config := dict "apiVersion" "proxy-agent.io/v1alpha1" "kind" "ProxyAgentConfiguration" -}}
{{- mergeOverwrite $config (deepCopy .Values.proxyAgentConfiguration) | toYaml -}}
{{- end -}}

{{/* What the agent and the init container have in common. */}}
{{- define "proxy-agent.container" -}}
image: {{ include "proxy-agent.image" . }}
imagePullPolicy: {{ .Values.image.pullPolicy }}
env:
  - name: NODE_NAME
    valueFrom:
      fieldRef:
        fieldPath: spec.nodeName
{{- if or .Values.apiServer.host (not .Values.existingConfigMap) }}
  # In place of the address of Service default/kubernetes, which works once the agent has programmed it.
  - name: KUBERNETES_SERVICE_HOST
    value: {{ required "apiServer.host: which address of the API server works without a Service IP?" .Values.apiServer.host | quote }}
  - name: KUBERNETES_SERVICE_PORT
    value: {{ .Values.apiServer.port | quote }}
{{- end }}
volumeMounts:
  - name: config
    mountPath: /var/lib/kube-proxy
    readOnly: true
{{- if include "proxy-agent.touchesPins" . }}
  - name: bpffs
    mountPath: /sys/fs/bpf
    # A bpf file system that the node mounts later is seen too.
    mountPropagation: HostToContainer
{{- end }}
{{- if include "proxy-agent.usesEbpf" . }}
  # The true root of all cgroups: a container sees its own as the root.
  - name: cgroup
    mountPath: /sys/fs/cgroup
    mountPropagation: HostToContainer
    readOnly: true
{{- end }}
{{- end -}}

{{- define "proxy-agent.args" -}}
- --config=/var/lib/kube-proxy/config.conf
- --hostname-override=$(NODE_NAME)
{{- range .Values.extraArgs }}
- {{ . | quote }}
{{- end }}
{{- end -}}

{{- define "proxy-agent.probe" -}}
httpGet:
  path: {{ .path }}
  port: {{ .root.Values.healthz.port }}
  {{- with .root.Values.healthz.host }}
  host: {{ . | quote }}
  {{- end }}
timeoutSeconds: 5
{{- end -}}
