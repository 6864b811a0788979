"""Who may do what: identities, roles and the policy that every call passes first.

| file | what it holds |
|---|---|
| ``guard`` | the guard: what each RPC and path needs, from credentials to an identity; ``Access`` |
| ``policy`` | which identity has which roles, namespace and quota; its file, and its mistakes |
| ``tokens`` | bearer tokens: known again by their digest; made and revoked |
| ``jwt`` | JSON Web Tokens: verified with the public keys of their issuer, from a file or a URL |
| ``tls`` | certificates and keys of TLS; whom a client certificate names, and who vouches for it |

A daemon without any source of identities (tokens, client certificates, JSON Web Tokens, a policy)
asks for none, and everybody may do everything. With one, a call without an identity gets
CREDENTIALS_MISSING, one whose credentials do not count CREDENTIALS_INVALID, and one whose identity
lacks the role that it needs ROLE_MISSING.

All that says who may do what is one immutable ``Access``, read whole: a reload makes another, which
remembers nothing of what counted before. A daemon that asks for identities asks for them until it
ends, whatever a reload finds: a file that vanishes opens nothing.

An identity has a namespace: its caches, quarantine and counters are those of the namespace alone.
"""
