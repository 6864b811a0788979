"""The wasmkiln daemon: validates, compiles and caches WebAssembly modules."""

import sys

if sys.version_info < (3, 11):  # noqa: UP036 - the client in this distribution runs on 3.10 too
    raise SystemExit("error: wasmkilnd needs Python 3.11 or newer")
