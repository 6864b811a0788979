"""The metrics: what the daemon counts, for Prometheus (/metrics) and for the RPC Stats.

=============  =====================================================================
``recorder``   ``Metrics``: the other parts call it when something happens
``catalogue``  every counter and histogram: name, HELP, labels, buckets
``gauges``     values of other parts (tiers, pools, calls, Redis), read when scraped
``series``     what prometheus_client lacks: labels with a bound, and percentiles
=============  =====================================================================

The families, all named ``wasmkiln_…``, and the question that each answers:

=============================================  =========================================
``served``, ``flights``                        where do artifacts come from: hit ratio
``tier_*``, ``values_rejected``, ``redis_*``   what do the caches hold, how fast are they
``compiles``, ``compile_duration``             how many compiles fail, how long do they take
``queue_*``, ``workers*``, ``abandoned``       are there enough workers
``rpcs``, ``rpc_duration``, ``sent_bytes``     what do callers get, and how fast
``calls``, ``receive_*``, ``send_*``           how much memory do calls hold
``refused``, ``connections_closed``            which limits protect callers from others
``quota_*``                                    who is near to a quota, and which quotas refuse
``fleet_turns``, ``quarantine*``               do daemons share work and failures
=============================================  =========================================

Names, labels and buckets are a contract: tests/unit/telemetry/metrics.txt lists them, and
docs/reference/metrics.md and deploy/prometheus-alerts.yml use them. To add a metric: define it in
``catalogue``, count it in ``recorder``, and add it to that list and to docs/reference/metrics.md.

Stats reads the same series, in rpc/wire/stats.py.

Promises: recording takes about a microsecond and never raises; no label grows with what callers
send (unexpected values count under ``other``); two daemons in one process share nothing.
"""
