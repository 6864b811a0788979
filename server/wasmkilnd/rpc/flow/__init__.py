"""Bytes in flight: how much of requests and answers the daemon holds, and for how long.

gRPC buffers in both directions on its own, and tells Python nothing of it. This room keeps
what it buffers within budgets, and ends the calls that do not move.

``receive``      A request. gRPC takes a message in as fast as its caller sends it, up to the
                 largest size. So the daemon serves every method as one of streams, which is the
                 same on the wire, and asks for the request only when there is room. One that
                 has not arrived after 0.1 s counts as large as a message may be.
``send``         An answer. gRPC holds a copy of each message until its caller reads. So the
                 messages become smaller as the budget fills, and hundreds of callers that read
                 nothing fit into it while the others read on.
                 The last message of Compile goes out with the status, in one turn of the event
                 loop. It is at most 64 KiB of an artifact, which gRPC's first window takes.
``answer``       What the sender knows of an answer on its way.
``send_budget``  The artifacts that answers keep in memory after the memory tier has dropped
                 them. Each counts once, however many answers send it.

What the room promises:

- The bytes held stay within ``receive_bytes``, ``send_bytes`` and ``send_pinned_bytes``.
- Every budget is a ``FairShare``: a caller gets no more of it than it leaves free.
- A call that makes no progress for ``caller_timeout_s`` is ended with COMPILE_QUEUE_FULL
  (``limit=receive`` or ``limit=send``). If its caller does not read even that, the daemon
  closes the connection; so it does after twice the time if only the last message is unread,
  which no refusal can follow. While other calls wait for room, readers that stall for a second,
  or read an artifact at less than 256 KiB/s, are ended sooner, the heaviest caller's first.

Gauges: ``wasmkiln_receive_bytes``, ``wasmkiln_send_bytes``, ``wasmkiln_send_pinned_bytes``.
"""
