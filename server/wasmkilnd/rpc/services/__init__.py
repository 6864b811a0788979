"""The services of the contract, one file each.

``module``      ModuleService: Load, Compile, Stats, GetCapabilities, FindMissing
``admin``       AdminService: Evict, ListQuarantine, ReleaseQuarantine, Drain

A servicer has one method per RPC: it takes a request and the ``Call`` (caller,
priority, deadline, request id), translates the request, calls a service of the core, notes in
the call what its log line tells, and returns a message, serialized bytes, or a
``SerializedAnswer``. It raises ``WasmkilnError`` for what the caller has to know. Counting,
logging, limits and errors are those of ``rpc.calls``.
"""
