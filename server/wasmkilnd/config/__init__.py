"""The daemon's settings: one schema makes the flags, the environment variables and the docs.

``schema.Settings`` holds every setting with its type, its only default and its help text. The
daemon reads no other source of configuration, and no other file repeats a default.

**Precedence**: a flag wins over the environment, the environment over the TOML file, the file
over the default. ``load`` merges the four layers, checks the result once, and remembers where
each value came from. It refuses unknown names and impossible values with one line each, and
never shows a secret. Upstash's own variables (``upstash``) fill Redis settings that are unset.

| part | what it is for |
|---|---|
| ``sections/`` | the settings themselves, one file per theme |
| ``values/`` | how one value is read and written: sizes, durations, addresses, Redis URLs, paths |
| ``schema`` | ``Settings``: all sections as one, and checks across settings |
| ``load``, ``upstash`` | from flags, environment and file to ``Settings``, or to ``ConfigError`` |
| ``flags`` | the command line flags of each setting |
| ``show`` | ``wasmkilnd config``, and docs/reference/configuration.md |
| ``changes`` | what a reload may change in a running daemon |
| ``machine`` | the CPUs and the memory that this process may use, control groups included |

CONTRIBUTING.md lists the files that a new setting touches. A value that no part reads again must
not be marked ``LIVE``. A field of the type ``Secret`` gets no flag and is masked everywhere. Names
end in ``_bytes`` or ``_s`` where the value has a unit: the reader of sizes and durations, and the
docs, go by that.
"""
