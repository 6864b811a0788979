{{- define "wasmkiln.name" -}}
{{- default .Chart.Name .Values.nameOverride | trunc 63 | trimSuffix "-" -}}
{{- end -}}

{{- /* 58 characters leave room for "-ring" within the 63 of a DNS label. */ -}}
{{- define "wasmkiln.fullname" -}}
{{- if .Values.fullnameOverride -}}
{{- .Values.fullnameOverride | trunc 58 | trimSuffix "-" -}}
{{- else -}}
{{- $name := include "wasmkiln.name" . -}}
{{- ternary .Release.Name (printf "%s-%s" .Release.Name $name) (contains $name .Release.Name) | trunc 58 | trimSuffix "-" -}}
{{- end -}}
{{- end -}}

{{- define "wasmkiln.selector" -}}
app.kubernetes.io/name: {{ include "wasmkiln.name" . }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end -}}

{{- define "wasmkiln.labels" -}}
{{ include "wasmkiln.selector" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" }}
{{- end -}}

{{- define "wasmkiln.image" -}}
{{- if .Values.image.digest -}}
{{ printf "%s@%s" .Values.image.repository .Values.image.digest }}
{{- else -}}
{{ printf "%s:%s" .Values.image.repository (default .Chart.AppVersion .Values.image.tag) }}
{{- end -}}
{{- end -}}

{{- define "wasmkiln.serviceAccountName" -}}
{{- if .Values.serviceAccount.create -}}
{{ default (include "wasmkiln.fullname" .) .Values.serviceAccount.name }}
{{- else -}}
{{ default "default" .Values.serviceAccount.name }}
{{- end -}}
{{- end -}}

{{- /*
A value as TOML. JSON's strings, numbers, booleans and lists of them are TOML too; a table is not.
Helm reads whole numbers as floating-point ones, which its toToml would write as 2.68435456e+08.
*/ -}}
{{- define "wasmkiln.toml" -}}
{{- if kindIs "map" . -}}
{ {{ range $i, $key := keys . | sortAlpha }}{{ if $i }}, {{ end }}{{ toJson $key }} = {{ include "wasmkiln.toml" (get $ $key) }}{{ end }} }
{{- else -}}
{{ toJson . }}
{{- end -}}
{{- end -}}

{{- /* Settings that the image has as variables, which win over the file: so these are variables too. */ -}}
{{- define "wasmkiln.environment" -}}
listen: {{ printf "0.0.0.0:%v" .Values.ports.grpc }}
admin_listen: {{ printf "0.0.0.0:%v" .Values.ports.admin }}
state_dir: /state
host_store_dir: {{ default "none" .Values.hostStore.hostPath }}
# Without TLS, the network policy says who reaches the port.
allow_remote: {{ or (not .Values.tls.existingSecret) .Values.tls.allowAnonymous | quote }}
{{- end -}}

{{- /* The other settings that the chart decides: a map, so that none is in the file twice. */ -}}
{{- define "wasmkiln.ownSettings" -}}
install_engines: {{ not .Values.engines.fromImage }}
{{- if .Values.redis.url }}
redis_url: {{ .Values.redis.url | quote }}
{{- end }}
{{- if .Values.redis.passwordSecret }}
redis_password_file: /etc/wasmkiln/redis-password/{{ .Values.redis.passwordKey }}
{{- end }}
{{- if .Values.redis.caSecret }}
redis_ca_file: /etc/wasmkiln/redis-ca/{{ .Values.redis.caKey }}
{{- end }}
{{- if or .Values.trustedKeys.existingSecret .Values.trustedKeys.existingConfigMap }}
trusted_keys: /etc/wasmkiln/trusted-keys
{{- end }}
{{- if .Values.objectStore.url }}
object_store_url: {{ .Values.objectStore.url | quote }}
{{- end }}
{{- if .Values.http.enabled }}
http_listen: {{ printf "0.0.0.0:%v" .Values.ports.http | quote }}
{{- end }}
{{- if include "wasmkiln.policy" . }}
policy_file: /etc/wasmkiln/config/policy.toml
{{- end }}
{{- if .Values.tokens.existingSecret }}
tokens_file: /etc/wasmkiln/tokens/{{ .Values.tokens.key }}
{{- end }}
{{- if .Values.tls.existingSecret }}
tls_cert_file: /etc/wasmkiln/tls/tls.crt
tls_key_file: /etc/wasmkiln/tls/tls.key
{{- if .Values.tls.clientCASecret }}
tls_client_ca_file: /etc/wasmkiln/client-ca/{{ .Values.tls.clientCAKey }}
{{- end }}
{{- end }}
{{- end -}}

{{- /* The kubelet has no identity: health is open, as it is in a daemon without a policy. */ -}}
{{- define "wasmkiln.policy" -}}
{{- if .Values.policy -}}
{{- if not (regexMatch "(?m)^ *open_health *=" .Values.policy) -}}
open_health = true
{{ end -}}
{{ .Values.policy }}
{{- end -}}
{{- end -}}

{{- define "wasmkiln.probe" -}}
{{- if .Values.tls.existingSecret -}}
httpGet: {path: {{ .path }}, port: admin, scheme: HTTPS}
{{- else -}}
grpc: {port: {{ .Values.ports.grpc }}, service: ""}
{{- end -}}
{{- end -}}

{{- /*
A file of files/: links into deploy/, so that alerts and dashboard are in the repository once. Helm
follows them. Their own templates are for Prometheus and Grafana: nothing here executes them.
*/ -}}
{{- define "wasmkiln.linked" -}}
{{- $root := index . 0 -}}
{{- $name := index . 1 -}}
{{- $text := $root.Files.Get (printf "files/%s" $name) -}}
{{- if not (contains (index . 2) $text) -}}
{{- fail (printf "\ncannot read files/%s of the chart: it is a symbolic link into deploy/, which this copy lost; take the chart's archive of a release, or a checkout with symbolic links (git config core.symlinks true)" $name) -}}
{{- end -}}
{{- $text -}}
{{- end -}}

{{- define "wasmkiln.check" -}}
{{- $tier := "" -}}
{{- if and .Values.objectStore.url (ne .Values.settings.object_store_mode "read-only") -}}
{{- $tier = "one object store" -}}
{{- end -}}
{{- if or .Values.redis.existingSecret (and .Values.redis.url (ne .Values.redis.url "none")) -}}
{{- $tier = "one Redis" -}}
{{- end -}}
{{- if and .Values.redis.url .Values.redis.existingSecret -}}
{{- fail "\ncannot use two Redis URLs: set redis.url or redis.existingSecret, not both" -}}
{{- end -}}
{{- if and .Release.IsUpgrade (gt (int .Values.replicas) 1) (not .Values.settings.default_engine) -}}
{{- fail "\ncannot upgrade several daemons without settings.default_engine: a new one would choose wasmtime for callers who name no engine, where those of 0.6.0 chose wasmer; set it to what they use (wasmkiln capabilities marks it)" -}}
{{- end -}}
{{- if and $tier (gt (int .Values.replicas) 1) (not .Values.signingKey.existingSecret) -}}
{{- fail (printf "\ncannot share %s between %d daemons that sign with keys of their own: each would reject what the others stored; make one key (wasmkilnd keys generate --print), put it into a Secret, and name that in signingKey.existingSecret" $tier (int .Values.replicas)) -}}
{{- end -}}
{{- if and .Values.trustedKeys.existingSecret .Values.trustedKeys.existingConfigMap -}}
{{- fail "\ncannot mount two sources of trusted keys: set trustedKeys.existingSecret or trustedKeys.existingConfigMap, not both" -}}
{{- end -}}
{{- if and .Values.tls.clientCASecret (not .Values.tls.existingSecret) -}}
{{- fail "\ncannot ask callers for certificates without TLS: set tls.existingSecret too" -}}
{{- end -}}
{{- if and .Values.tls.existingSecret (not (or .Values.tls.allowAnonymous .Values.tls.clientCASecret .Values.tokens.existingSecret .Values.policy)) -}}
{{- fail "\ncannot tell callers apart: set tls.clientCASecret, tokens.existingSecret or policy, or let in everybody who reaches the port by tls.allowAnonymous" -}}
{{- end -}}
{{- $taken := dict -}}
{{- range $name := ternary (list "grpc" "admin" "http") (list "grpc" "admin") .Values.http.enabled -}}
{{- $port := get $.Values.ports $name | int | toString -}}
{{- with get $taken $port -}}
{{- fail (printf "\ncannot serve two things at one port: ports.%s and ports.%s are both %s" . $name $port) -}}
{{- end -}}
{{- $_ := set $taken $port $name -}}
{{- end -}}
{{- if and .Values.objectStore.existingSecret (not .Values.objectStore.url) -}}
{{- fail "\ncannot use the credentials of objectStore.existingSecret without a bucket: set objectStore.url too" -}}
{{- end -}}
{{- range $name := list "listen" "http_listen" "admin_listen" "state_dir" "host_store_dir" "install_engines" "allow_remote" "redis_url" "redis_password" "redis_password_file" "redis_ca_file" "object_store_url" "signing_key" "trusted_keys" "keys_dir" "policy_file" "tokens_file" "tls_cert_file" "tls_key_file" "tls_client_ca_file" "config" -}}
{{- if hasKey $.Values.settings $name -}}
{{- fail (printf "\ncannot set settings.%s: the chart decides it from its other values (ports, http, redis, objectStore, tls, signingKey, trustedKeys, policy, tokens, engines, hostStore)" $name) -}}
{{- end -}}
{{- end -}}
{{- end -}}
