"""How a client reaches its daemon, and how it says who calls: address, TLS, tokens, profiles.

| file | what it holds |
|---|---|
| `access` | `Access`: all of it for one client, chosen from arguments, profile and environment |
| `tls` | `TLS`: the files for a connection over TLS, read again when one of them changes |
| `token` | the token that each call carries, of which none is ever shown |
| `files` | small files, and what changes when one of them does |
| `profiles` | the file with the profiles, each a daemon and the way to reach it |
| `diagnosis` | why a connection fails, in one sentence with what to do |
| `probe` | the short connection that the diagnosis makes by Python's own `ssl` |
| `certificate_dates` | until when a certificate in PEM is valid |
| `places` | hosts and ports of addresses, and which of them are on this machine |

An argument wins over the profile, and the profile over the environment. With a profile, the
environment's variables for TLS, tokens and the address are not read, so that no token goes to a
daemon for which it was not meant. A token goes over plaintext to this machine only, unless the
caller says otherwise.

gRPC's own words for a failed handshake are for those who know TLS, and a few failures have none
at all. So after one the client connects once more, for two seconds at most, and says which of the
files or settings is wrong: `ConnectionFailed.metadata["cause"]` is a word for it.
"""

from wasmkiln.access.access import Access
from wasmkiln.access.tls import TLS

__all__ = ["TLS", "Access"]
