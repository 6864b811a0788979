"""Who may do what: identities, roles and the policy that every call passes first.

| file | what it holds |
|---|---|
| ``needs`` | the table: what each RPC and each HTTP path needs |
| ``policy`` | which identity has which roles, namespace and quota; limits of both |
| ``policy_file`` | reads a policy from TOML, and says in words what is wrong with it |
| ``tokens``, ``token_store`` | bearer tokens: known again by their digest; made and revoked |
| ``certificates`` | whom a client certificate names, and whether a CA vouches for it now |
| ``web_tokens``, ``key_set`` | JSON Web Tokens: verified with the public keys of their issuer |
| ``key_fetcher`` | fetches those keys from their URL, beside the calls |
| ``identities`` | from credentials to an identity; remembers those that were checked |
| ``guard`` | the port ``Guard``: who calls, and whether they may |
| ``sources`` | reads all of this together, from the settings |
| ``show`` | prints who may do what |
| ``unusable`` | the error for files that cannot be used |
| ``tls/`` | certificates and keys of TLS: read, checked, replaced while calls run |

Every RPC and every HTTP request passes the guard before the daemon reads more of it. A daemon
without any source of identities (tokens, client certificates, JSON Web Tokens, a policy) asks for
none, and everybody may do everything. With one, a call without an identity gets
CREDENTIALS_MISSING, one whose credentials do not count CREDENTIALS_INVALID, and one whose identity
lacks the role of its row in ``needs`` ROLE_MISSING. A path without a row is refused.

A credential is checked once and then remembered, until it expires or anything of this changes: a
reload makes new ``Identities``, which remember nothing. A token counts before the certificate of
its connection, both before the socket. A certificate is looked at even beside a token.

A daemon that asks for identities asks for them until it ends, whatever a reload finds: a file that
vanishes opens nothing. Format of the tokens file: ``version`` 1; raise it for what an older daemon
must not read.

An identity has a namespace: its caches, quarantine and verdicts are those of the namespace alone.
"""
