"""What `wasmkiln warm` warms, where that comes from, and the work itself.

    sources     what an argument or a line of a list names, as modules
    lists       @FILE and -: lists of sources
    module      one module: its name, its digest, and how to get its bytes
    variants    --engine, --target, --cpu and --set, each as often as wanted: their product
    work        ask what is missing, compile it, upload what the daemon lacks
    outcome     what came of a run: numbers, failures, the document of --json
    manifest    manifests and indexes of OCI: which of their layers are modules
    layout      a folder in OCI's image layout
    reference   oci://HOST/REPOSITORY[:TAG][@DIGEST], taken apart
    registry    a repository of a registry, read with what oras knows of credentials
    web         the HTTP below it: bounded in bytes and time, careful with redirects
    unusable    the failure of a source

What the work can rely on: each module has a SHA-256 before anything is sent, `read` returns
bytes of that digest or raises, and no source makes the command hold more bytes than its limit.
A layer's digest is its module's: so a module that the daemon has is never downloaded.

Nothing of a registry is believed: manifests, layers and redirects are bounded in number, size
and time, and each manifest and layer is checked against its digest. Only `registry` and `web`
need `wasmkiln[oci]`.
"""
