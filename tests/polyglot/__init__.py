"""Every client that is not Python's, and every host, against a real daemon.

`make test-polyglot` installs what these tests need (`toolchains`) and runs them; `make test`
leaves them out. A file is a language: it builds the client of `client/`, and shows that it
compiles, verifies, hits and fails as its README says, and that a host that is not Python runs what
came out.

- `toolchains`: what each language needs, and the Debian packages that have it.
- `kiln`: the daemons, and how a program calls them.
- `conftest`: the fixtures. `kiln` is a daemon with a signing key, a host store and a queue that
  `full_queue` fills; `secure` is one that asks for TLS and a token; `built` is the folder below
  `.work/polyglot` where a language keeps what it builds, so that a second run builds little.

A test that lacks its toolchain is skipped and says what is missing, unless
`POLYGLOT=all`, as `make test-polyglot` has it: then it fails.
"""
