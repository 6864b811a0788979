"""What operators use beside the daemon, each in the real thing: browser, Prometheus, chart.

`make test-operators` installs what these tests need (`toolchains`) and runs them; `make test`
leaves them out. A file is one thing that an operator has at home.

- `toolchains`: the programs that are needed, and the Debian packages that have them. A further one
  is a row there.
- `conftest`: the fixtures. `daemon` is a daemon that all files may call and none may harm, with an
  embedded Redis and a host store; `client` calls it; `needs("chromium")` returns where the
  program is, and skips the test where it is missing.
- `prometheus`: a Prometheus that scrapes daemons each second and evaluates the repository's rules.
- `alert_cases`: for each part of an alert's expression the series with which promtool sees it fire.
  That a daemon's metrics tell of it is shown where daemons do: in tests/e2e.

A test that lacks a program is skipped and says what is missing, unless `OPERATORS=all`, as
`make test-operators` has it: then it fails. Files run side by side, each with a daemon of its own
process; a file whose tests change the daemon starts its own.
"""
