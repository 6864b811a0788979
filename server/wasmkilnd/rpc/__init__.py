"""The gRPC front of the daemon: translates between the wire and the domain, and decides nothing.

One call goes down these files and back: ``calls`` (the guard, limits, request id, log line,
errors) → ``flow.receive`` and ``wire.requests`` (read, check, build the request) →
``services.module`` (translate) → ``compile_service`` or ``module_service`` outside of this room →
``flow.send``.

====================  =======================================================================
``server``            the servers of all addresses, and the gates and budgets they share
``listener``          one gRPC server for a group of addresses: options, TLS, Unix sockets
``served``            the services and methods that a server serves
``calls``             what every call gets; ``Traffic`` holds the gates and budgets it passes
``audited``           which calls get a line of the audit, and what it says
``grpcio_services``   the same limits for health, reflection and channelz
``services/``         one file per service
``wire/``             messages, bounds of requests, error table
``flow/``             budgets for the bytes of requests and answers
``connections/``      calls of each connection, and which connections are closed
====================  =======================================================================

What the room promises: each request is admitted, read within a budget, and checked against its
bounds before protobuf builds anything of it. Each failure becomes a row of the error table
(``wire.status``); anything else becomes INTERNAL and a traceback in the log. No task,
buffer or traceback of a call outlives it.

CONTRIBUTING.md lists the files that a new RPC or error reason touches.
"""
