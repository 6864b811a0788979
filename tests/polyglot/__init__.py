"""Every client that is not Python's, and every host, against a real daemon.

`make test-polyglot` installs what these tests need (`toolchains`) and runs them; `make test`
leaves them out. The same tests run with each language: its client is built, and a program of it,
`asks.*`, says in a line what came of a call.

- `toolchains`: what each language needs, and the Debian packages that have it.
- `builds`: how each program is built; `gotools`: Go without modules and network.
- `kiln`: the daemons, and how a program calls them.
- `lies`: what a server in the daemon's place may answer, and what has to come of it.
- `test_large`: what goes in pieces, and over lines that break.
- `test_readmes`: the first program of a README, as printed.
- `test_restarts`: the same while the daemon restarts again and again; Python's client, too.
- `conftest`: the fixtures. `kiln` is a daemon with a signing key, a host store and a queue that
  `full_queue` fills; `secure` is one that asks for TLS and a token; `built` is the folder below
  `.work/polyglot` where a language keeps what it builds, so that a second run builds little.

A test that lacks its toolchain is skipped and says what is missing, unless
`POLYGLOT=all`, as `make test-polyglot` has it: then it fails.
"""
