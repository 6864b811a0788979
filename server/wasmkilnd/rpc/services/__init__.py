"""The services that callers see, one file each.

``module``      ModuleService: Load, Compile, Stats, GetCapabilities, FindMissing
``admin``       AdminService: Evict, ListQuarantine, ReleaseQuarantine, Drain
``health``      grpc.health.v1: whether the daemon serves calls
``channelz``    grpc.channelz.v1: the server's sockets and counts
``reflection``  grpc.reflection.v1 and v1alpha: the contract itself, for grpcurl

A servicer of the first two has one method per RPC: it takes a request and the ``Call`` (caller,
priority, deadline, request id), translates the request, calls a service of the core, notes in
the call what its log line tells, and returns a message, serialized bytes, or a
``SerializedAnswer``. It raises ``WasmkilnError`` for what the caller has to know. Counting,
logging, limits and errors are those of ``rpc.calls``.

The other three come with grpcio or replace what it does badly: its health servicer loses
watchers, its channelz fails at new fields, its reflection lacks v1. They run behind
``rpc.grpcio_services``, so that a call of theirs meets the same limits.
"""
