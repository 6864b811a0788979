"""TLS: the files that the daemon reads for it, their checks, and what is made of them.

| file | what it holds |
|---|---|
| ``pem`` | read certificates and a private key from PEM files; refuse what TLS cannot use |
| ``material`` | ``TlsMaterial``: certificate, key and client CAs that were checked together |
| ``files`` | ``TlsFiles``: the material in force, and what replaces it |
| ``grpc_credentials`` | the credentials of gRPC servers, which take what is in force |
| ``first_try`` | make a CA and certificates: `wasmkilnd tls init` |

``TlsFiles.current`` is what connections are made with from now on: ``http_context()`` for HTTP,
and the certificate configuration for gRPC, which asks for it at each handshake. Connections that
exist keep what they were made with. So the guard checks the certificate of a caller at each call
against ``current.client_cas``: a CA that is not in force any more lets nobody in, over no
connection.

Promises: files that cannot be used change nothing, and the log says so once. The files are checked
as a whole before any of them is used, and what was checked is what is used: nothing is read twice.
Messages read "cannot use tls_key_file /path: why" and never hold a key.

Certificate and key may be replaced one after the other: files that changed are read once they have
stayed the same for a second (``lifecycle.watch``). Metrics: ``wasmkiln_tls_not_after_seconds`` and
``wasmkiln_tls_reload_failures_total``.
"""
