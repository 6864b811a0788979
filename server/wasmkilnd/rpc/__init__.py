"""The front of the daemon, gRPC and HTTP: lets calls in within their limits, and translates.

One call goes down these files and back: ``calls`` (the guard, request id, log line, errors) →
``traffic`` and ``messages`` (read within the limits, check, build the request) →
``module_service`` (translate) → ``compile`` outside of this room → ``traffic`` (send).

====================  =======================================================================
``server``            the servers of all addresses, what they serve, and grpc's own limits
``calls``             what every call gets, its line of the audit among it
``traffic``           one call under way, and every limit on all of them together
``health``            health, reflection and channelz, within the same limits; the descriptors
``module_service``    the RPCs of ModuleService; ``admin_service`` those of AdminService
``messages``          all translation: requests, answers, the status of an error
``http``              artifacts and modules over HTTP, whose requests are calls like any other
``upload``            modules that arrive in pieces
====================  =======================================================================

What the room promises: each request is admitted, read within a budget, and checked against the
size of its method before protobuf builds anything of it. Each failure becomes a row of the error
table (``errors.Reason``); anything else becomes INTERNAL and a traceback in the log. No task,
buffer or traceback of a call outlives it.

CONTRIBUTING.md lists the files that a new RPC or error reason touches.
"""
