"""The settings, one file per theme; ``config.schema.Settings`` inherits from all of them.

| file | settings |
|---|---|
| ``serving`` | addresses, the state directory, signing keys |
| ``access`` | TLS, tokens, JSON Web Tokens, the policy, the audit |
| ``caches`` | Redis and the embedded server, the memory tier, entries that expire |
| ``host_store`` | artifacts in files that processes of this host map |
| ``queue`` | sizes of modules and artifacts, engines, workers, the queue in front of them |
| ``traffic`` | limits on calls, connections and bytes in progress |
| ``jobs`` | the time and memory of one compilation, quarantine, isolation |
| ``life`` | shutdown and logs |

Each class only declares fields. Checks across settings are in ``config.schema``.
"""
