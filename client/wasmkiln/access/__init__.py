"""Names that the command imports from here: see credentials.py."""

from wasmkiln.credentials import TLS as TLS
