"""The settings, one file per theme; ``config.schema.Settings`` inherits from all of them.

| file | settings |
|---|---|
| ``serving`` | addresses, the state directory, signing keys |
| ``caches`` | Redis and the embedded server, the memory tier, entries that expire |
| ``queue`` | sizes of modules and artifacts, engines, workers, the queue in front of them |
| ``traffic`` | limits on calls, connections and bytes in progress |
| ``jobs`` | the time and memory of one compilation, quarantine, isolation |
| ``life`` | shutdown and logs |

Each class only declares fields. Checks across settings are in ``config.schema``.
"""
