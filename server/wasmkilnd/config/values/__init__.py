"""How one value of a setting is read, checked and written again.

Each parser takes what a flag, a variable or a TOML file can hold, and raises ValueError with a
sentence that says what is allowed. ``config.load`` puts the setting's name and the source of the
value in front of that sentence.

| file | values |
|---|---|
| ``quantity`` | sizes (``256MiB``), durations (``500ms``), counts |
| ``address`` | where to listen: ``host:port``, ``[v6]:port``, ``unix:/path`` |
| ``redis_url`` | where Redis is, with its password masked |
| ``listening`` | which addresses and TLS settings go together |
| ``toml_text`` | a whole TOML file, with one sentence for what is wrong with it |
| ``types`` | the annotated types that the fields of ``config.sections`` use |
"""
