"""What goes over the wire: requests and their bounds, messages, and the error table.

``bounds``        how often and how long each field of a request may be, for every service
``contract``      the descriptors of every service, which the bounds and reflection are made of
``requests``      reads a request, checks its bytes against the bounds, and builds it
``parts``         messages of many parts, built one by one: the 10,000 keys of FindMissing
``messages``      domain values to messages of the contract, and requests to domain values
``headers``       the first message of Compile, which may hold a small artifact
``capabilities``  the response of GetCapabilities
``stats``         the response of Stats
``status``        the error table

A protobuf message of a few bytes can cost megabytes and seconds once it is built. So the daemon
scans the bytes of a request first, and lets other calls run meanwhile. A field above its bound,
more than a million fields, or more than 100 unknown ones are INVALID_REQUEST. The cost of building
the rest is known then, and counts in the budget of ``flow.receive``. A field with no row in
``bounds.TABLE`` keeps the daemon from starting; docs/reference/errors.md shows the bounds to
callers.

The error table is ``status.CODES``: one gRPC code for each ``errors.Reason``. Callers receive a
``google.rpc.Status`` with the reason (ErrorInfo, domain ``wasmkiln``), the field at fault
(BadRequest) and the time to wait (RetryInfo), cut to what HTTP/2 headers carry. The names of
reasons, fields and metadata keys are public: add some, change none.

``headers.Headers`` serializes what an artifact says of itself once, so that a hit in the memory
tier builds no message at all. It puts an artifact of up to 64 KiB into the first message, if the
caller allows that, and the name of its file in the host store instead of it.
"""
