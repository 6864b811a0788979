"""The way to a daemon, as the command imports it; all of it is in `wasmkiln.credentials`.

| name here | what it is |
|---|---|
| `TLS` | the files for a connection over TLS |
| `profiles.profiles_file` | the path of the file with profiles |
| `profiles.read_profiles` | the profiles in it |

An argument wins over the profile, and the profile over the environment. With a profile, the
environment's variables for TLS, tokens and the address are not read.

`wasmkiln._settings` is such a file, too. Both go when the command imports the names where they are.
"""

from wasmkiln.credentials import TLS as TLS
