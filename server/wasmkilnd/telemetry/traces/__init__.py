"""Spans of OpenTelemetry: what one call waited for, and what it cost, seen from the service above.

``open`` reads the settings, and sends to the collector; ``spans`` makes the span of a call and of
its steps; ``steps`` surrounds the ports of the request path, so that no part of it knows of traces.
Only ``lifecycle/tracing.py`` imports this room, and only if ``trace_endpoint`` is set: without
it no file here is read, no library is loaded, and nothing surrounds a port.

A call belongs to the trace that its ``traceparent`` names (W3C Trace Context), else it begins
one. Its span has the attributes ``rpc.*``; the steps below it are ``lookup TIER``, ``store TIER``,
``queue``, ``lease``, ``wait for another daemon``, ``compile`` and ``validate``. Their attributes
are under ``wasmkiln.``: tier, outcome, engine, sizes, origin, reason. No digest, name, address,
token or message is among them: a collector may be read by more people than the log.
The line of a call in the log has the ``trace_id``, and so does all else that is logged for it.

Which call a task works for is in OpenTelemetry's own context, which asyncio hands to the tasks that
a task starts. A step counts if it begins before its call ends: so what a task does later, for
others, is in no trace. Writes behind a call carry its context along (``carry``).

Promises: no span makes a call wait or fail. Finished spans wait in a queue of ``QUEUE`` spans, from
which a thread sends them; if the collector does not take them, the oldest are dropped, and the
log says so once. At the end of the daemon, what waits has ``FLUSH_S`` seconds to leave.
"""
