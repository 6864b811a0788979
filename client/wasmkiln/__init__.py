"""Client of the wasmkiln daemon: compile WebAssembly once, load it everywhere.

    from wasmkiln import Client

    with Client("127.0.0.1:50051") as client:
        artifact = client.compile("module.wasm", engine="wasmtime")
        module = artifact.load()

What callers use is public and exported here:

    client, aio     Client and AsyncClient; every method is written once, in client.py
    artifact        Artifact: bytes and header; save, open, verify, load
    assembly        how an artifact arrives, and is checked on the way
    attestation     who signed an artifact, what that states, and which keys a caller trusts
    credentials     the way to a daemon: address, TLS, tokens, profiles
    errors          one exception for each reason of the contract
    loading         put an artifact into the engine of this interpreter
    host_store      artifacts in files that a daemon of this machine keeps, to map them
    shared          what the daemon knows too: fingerprints, the host store's layout
    cli/            the `wasmkiln` command

How a call runs, from the outside in: a method of client.py builds a request and awaits its answer
(rpc.py: deadline, pauses, errors), which `Client` or `AsyncClient` fetches over the channel of
credentials.py; a large module goes in pieces (upload.py). Each answer is checked before it is used:
what every answer promises in rpc.py, an artifact in assembly.py and `_header_fields`. Nothing that
a daemon sends is believed without a check: `_header_fields` says why each field may be, and
`_untrusted` makes texts fit to be shown.

Importing this package imports nothing: each name is imported when it is used, `Client` with
protobuf, and grpcio and googleapis-common-protos by its first call. Nothing here is of the daemon.
The command needs `wasmkiln[cli]`, checking attestations `wasmkiln[verify]`, and `Artifact.load` the
engine itself.
"""

from importlib import import_module
from itertools import chain
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from wasmkiln import aio as aio
    from wasmkiln import errors as errors
    from wasmkiln.aio import AsyncClient as AsyncClient
    from wasmkiln.artifact import Artifact as Artifact
    from wasmkiln.artifact import Origin as Origin
    from wasmkiln.assembly import Phase as Phase
    from wasmkiln.assembly import Progress as Progress
    from wasmkiln.attestation import PublicKey as PublicKey
    from wasmkiln.attestation import TrustedKeys as TrustedKeys
    from wasmkiln.client import Client as Client
    from wasmkiln.credentials import TLS as TLS
    from wasmkiln.errors import *  # noqa: F403 - all that errors.py defines
    from wasmkiln.loading import engine_of as engine_of
    from wasmkiln.v1.types_pb2 import ArtifactHeader as ArtifactHeader
    from wasmkiln.v1.types_pb2 import ArtifactKey as ArtifactKey

    __all__: list[str]
    __version__: str

# Where each name is; all others are exceptions, in `errors`, or files.
_HOMES = {
    "aio": ("AsyncClient",),
    "artifact": ("Artifact", "Origin"),
    "assembly": ("Phase", "Progress"),
    "attestation": ("PublicKey", "TrustedKeys"),
    "client": ("Client",),
    "credentials": ("TLS",),
    "loading": ("engine_of",),
    "v1.types_pb2": ("ArtifactHeader", "ArtifactKey"),
}


def __getattr__(name: str) -> Any:
    """Return a name once a program uses it."""
    if name == "__version__":
        from importlib.metadata import version

        return version("wasmkiln")
    if name == "__all__":
        return __dir__()
    if not name.startswith("_"):
        home = next((home for home, names in _HOMES.items() if name in names), "errors")
        found = vars(import_module(f"wasmkiln.{home}"))
        if name in found and (home != "errors" or isinstance(found[name], type)):
            return globals().setdefault(name, found[name])
        try:
            return import_module(f"wasmkiln.{name}")
        except ModuleNotFoundError:
            pass
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    """Return the public names, whether a program has used them or not."""
    known = vars(import_module("wasmkiln.errors")).items()
    raised = (name for name, what in known if isinstance(what, type) and name[0] != "_")
    return sorted(chain(("__version__", "aio", "errors"), raised, *_HOMES.values()))
