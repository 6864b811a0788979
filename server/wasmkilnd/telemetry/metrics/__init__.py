"""The metrics: what the daemon counts, for Prometheus (/metrics) and for the RPC Stats.

=============  =====================================================================
``recorder``   ``Metrics``: the other parts call it when something happens
``catalogue``  every counter and histogram: name, HELP, labels, buckets
``gauges``     where other parts (tiers, pools, calls, Redis) say how they are read
``readings``   what these parts return: their state at about one moment
``families``   turns that into metrics, when Prometheus asks
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
``refused``                                    which limits protect callers from others
``quota_*``                                    who is near to a quota, and which quotas refuse
``fleet_turns``, ``quarantine*``               do daemons share work and failures
``ready``, ``engine_state``, ``isolation_*``   what is served, and how are jobs confined
``reloads``, ``last_reload_*``, ``tls_*``      do changed settings and files work
=============================================  =========================================

Names, labels and buckets are a contract: tests/unit/telemetry/metrics.txt lists them, and
docs/reference/metrics.md, deploy/prometheus-alerts.yml and deploy/grafana/ use them. To add a
metric: define it in ``catalogue`` and count it in ``recorder``, or read it in ``gauges`` and show
it in ``families``; add it to that list and to the page. What an alert watches has to stand at zero
from the start: increase() sees no event that makes its own series.

Stats reads the same series, in rpc/messages.py.

Promises: recording takes about a microsecond and never raises; no label grows with what callers
send (unexpected values count under ``other``); two daemons in one process share nothing.
"""
