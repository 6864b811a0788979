"""The wasmkiln daemon: it validates, compiles and caches WebAssembly modules.

``cli`` parses the command line, ``app`` builds all parts, handles signals, and ends them.
One Compile call goes through these files in this order; ``compile`` calls the indented ones, and a
memory hit only the first of them:

    rpc/calls               who calls, and may they; limits, the log line, metrics and audit
    rpc/module_service      reads the request, sends the answer
    compile                 look in the cache; join or start a flight; compile; store
      cache/cache           memory first, then the host store, then Redis
      flights               one compilation for all callers that want the same artifact; who waits
      quarantine            refuses a module that broke this compiler before
      redis/fleet           one compilation among all daemons on one Redis
      engines/registry      chooses the engine of a request
      engines/pool          a worker for the job; engines/process is one worker

Load and FindMissing are in ``compile`` too, Pin, Unpin and ListPins in ``pins``. Each namespace has
caches and services of its own (``tenants``). ``quota`` counts what callers may have done in a
minute or an hour.

| room or file | what it is for |
|---|---|
| ``access`` | who may do what: identities, roles, TLS |
| ``rpc`` | gRPC: calls and their limits, messages; artifacts over HTTP |
| ``cache`` | the tiers; who of the fleet compiles |
| ``pins``, ``usage`` | what no tier evicts; how often each artifact is served |
| ``engines`` | installing engines, running jobs in confined workers, judging how jobs end |
| ``signing`` | keys and signatures: the daemon serves only artifacts that a trusted key signed |
| ``settings`` | one schema for flags, environment, file and docs; ``settings_loader`` reads it |
| ``lifecycle`` | start, readiness, reload, shutdown |
| ``web`` | who gets in at an address of HTTP, and who a request is from |
| ``telemetry`` | logs, the audit, metrics, the HTTP port for metrics and health |
| ``commands`` | the commands beside ``serve``: keys, tokens, certificates, the cache |
| ``model``, ``errors`` | values and failures that all rooms share |

Which other rooms each may import is listed in pyproject.toml. The daemon never imports an engine:
engines run in processes and interpreters of their own.
"""

import sys

if sys.version_info < (3, 11):  # noqa: UP036 - the client in this distribution runs on 3.10 too
    raise SystemExit("error: wasmkilnd needs Python 3.11 or newer")
