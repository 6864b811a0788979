"""Who may do what: identities, roles and the policy that every call passes first.

| file | what it holds |
|---|---|
| ``needs`` | the table: what each RPC and each HTTP path needs |
| ``policy`` | which identity has which roles, namespace and quota; limits of both |
| ``guard`` | the port ``Guard``: from credentials to an identity, and whether it may |
| ``tls/`` | certificates and keys of TLS: read, checked, replaced while calls run |

Every RPC and every HTTP request passes the guard before the daemon reads more of it. A daemon
without any source of identities (tokens, client certificates, JSON Web Tokens, a policy) asks for
none, and everybody may do everything. With one, a call without an identity gets
CREDENTIALS_MISSING, one whose credentials do not count CREDENTIALS_INVALID, and one whose identity
lacks the role of its row in ``needs`` ROLE_MISSING. A path without a row is refused.

An identity has a namespace: its caches, quarantine and verdicts are those of the namespace alone.
"""
