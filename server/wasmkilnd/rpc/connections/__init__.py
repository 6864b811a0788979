"""Who is connected, what each connection is used for, and which connections the daemon closes.

grpc.aio tells a handler the peer of its call and nothing more: it lists no connections, ends
none, and closes the newest when an address has as many as it may. This room adds what is
missing, from gRPC's own counts (channelz) and from the kernel.

=================  ==========================================================================
``call``           one call under way (caller, priority, request id, log fields) and the calls
                   of each connection: is it idle, waiting or working?
``sockets``        the daemon's open sockets: list them, count their bytes, group them by host,
                   shut them down
``core_counts``    calls and messages of each connection, as gRPC's core has counted them
``reserve``        keeps an eighth of ``max_connections`` free: closes idle connections, then
                   others of the host that has most, and none of a host within its share
``floods``         tells floods from work by those counts; pure, without a clock
``cpu_demand``     how much of a CPU the daemon uses or waits for
``flood_guard``    the thread that looks for floods, and closes their connections
=================  ==========================================================================

What the room promises: a host that opens many connections, or floods the daemon over one,
closes no connection of a host that does not. A call that is ended for the reserve gets
COMPILE_QUEUE_FULL with ``limit=connections``. A flood is cut off without a word.

A host is an IPv4 address, an IPv6 /64 network, or on loopback a local user
(``sockets.hosts_of``). A caller, who shares the limits on calls and bytes with the other
callers, is the same but for loopback, where each connection is one (``call.caller_of``).

Settings: ``max_connections``, ``max_streams``, ``max_calls``. Metric:
``wasmkiln_connections_closed_total`` by cause: ``no_room``, ``not_read``, ``taken_back``,
``only_frames``.
"""
