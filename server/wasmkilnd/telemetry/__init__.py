"""How operators see what the daemon does.

===============  ====================================================================
``logs``         one line for each event, on standard error: masked, cut, limited
``metrics``      counters, gauges and histograms for Prometheus, and for the RPC Stats
``audit``        one line for each act that somebody may have to answer for
``tracing``      spans of calls, for a collector of OpenTelemetry; off unless configured
``admin``        the HTTP server with /metrics, /healthz and /readyz
``status``       the page that a person looks at, served by ``admin``, drawn in the browser
===============  ====================================================================

Nothing here decides anything: a daemon without telemetry would serve the same. Its parts log with
structlog, count by the methods of ``Metrics``, and put what takes time into a ``tracing.step``;
``app`` starts the log, and builds the metrics and the admin server.

No part of telemetry fails a call, nor lets a caller fill memory or the disk. Metric names and log
fields are a contract with operators (docs/reference/logs.md); the words of log events may change.
"""
