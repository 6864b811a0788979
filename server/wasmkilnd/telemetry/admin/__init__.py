"""The admin server: /metrics, /healthz and /readyz over HTTP, at ``admin_listen``.

==============  ====================================================================
``server``      the three pages, answered by aiohttp; /metrics is rendered once for
                all requests that wait for it
``listener``    accepts connections on TCP or a Unix socket; each then goes through
                the two stages below
``pending``     connections whose first request is not whole yet: at most 256 (and
                128 more that wait for the HTTP server), 10 s each
``connections`` connections that the HTTP server holds: at most 128; the one idle
                for longest makes way, of the host with most
==============  ====================================================================

/healthz says that the process runs; /readyz whether it serves calls, and why not; /metrics
is Prometheus text, or OpenMetrics if asked for. Nothing can be changed here, and no page is
secret, so there is no authentication: calls that change the daemon are in rpc/services/admin.

The server promises that strangers at this port take nothing from calls, jobs, scrapes and probes:
it has a bounded number of descriptors (``listener.DESCRIPTORS``), renders for a fifth of the
daemon's time at most, keeps a request that never becomes whole for 10 s, and logs no line for
each of them. tests/e2e/test_admin_port.py attacks a running daemon to show it.
"""
