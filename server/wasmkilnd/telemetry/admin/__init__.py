"""The admin server: /metrics, /healthz, /readyz and pages for browsers, at ``admin_listen``.

================  ====================================================================
``server``        what is answered at which path, by aiohttp
``shared_page``   makes a page once for all requests that wait for it
``pages``         pages for browsers, and the headers that they are sent with
``names``         which names a port of this machine alone answers to: no website's
``access``        asks the guard about each request: 401, 403, and their audit
``listener``      accepts connections on TCP or a Unix socket; each then goes through
                the two stages below
``pending``       connections whose first request is not whole yet: at most 256 (and
                128 more that wait for the HTTP server), 10 s each. With TLS, 64 more are in
                their handshake, and 64 have had it
``pending_queue`` their queues: the host with most connections loses its oldest
``tls``           TLS on a connection: a session without I/O, and a transport that has one
``connections``   connections that the HTTP server holds: at most 128; the one idle
                for longest makes way, of the host with most
================  ====================================================================

/healthz says that the process runs; /readyz whether it serves calls, and why not; /metrics
is Prometheus text, or OpenMetrics if asked for. The status page (``telemetry.status_page``) is
handed in. Where a page is for browsers, a person can give a token as password. Nothing can be
changed here: calls that change the daemon are in rpc/admin_service. Who may read a page is a row
of ``access.needs``, as for RPCs.

With ``tls_cert_file``, TCP connections speak TLS. The certificates in force are asked for as each
handshake begins, so that those that change harm no connection. A client may show a certificate,
and need not: a token will do.

The server promises that strangers at this port take nothing from calls, jobs, scrapes and probes:
it has a bounded number of descriptors (``listener.DESCRIPTORS``), renders for a fifth of the
daemon's time at most and shakes hands for another, keeps a request that never becomes whole for
10 s, and logs no line for each of them. tests/e2e/test_admin_port.py attacks a running daemon to
show it.
"""
