"""`wasmkiln verify`."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import TYPE_CHECKING

import click

from wasmkiln._requests import identify
from wasmkiln.artifact import attestation_path
from wasmkiln.attestation import MISMATCH, TrustedKeys, open_envelope
from wasmkiln.cli import tables
from wasmkiln.cli.connection_options import json_option
from wasmkiln.cli.options import MODULE
from wasmkiln.errors import AttestationInvalid

if TYPE_CHECKING:
    from wasmkiln.attestation import Statement
    from wasmkiln.cli.session import Session

_FILE = click.Path(exists=True, dir_okay=False, readable=True, path_type=Path)

_WITHOUT_MODULE = (
    "whether it is the artifact of the module that you mean, or of another one with an attestation"
    " of its own: give --module"
)
_WITHOUT_FINGERPRINT = (
    "whether it is for the engine, target, cpu and settings that you mean: give --fingerprint"
)


@click.command()
@click.argument("artifact", type=_FILE)
@click.option(
    "--attestation",
    type=_FILE,
    help="The attestation.  [default: ARTIFACT.dsse.json, where compile -o writes it]",
)
@click.option(
    "--key",
    "keys",
    multiple=True,
    metavar="KEY|FILE|DIR",
    help="A trusted public key: hex, base64, or PEM files; repeat for more.  "
    "[default: $WASMKILN_TRUSTED_KEYS]",
)
@click.option(
    "--module", type=MODULE, metavar="FILE|SHA256", help="Also require the artifact of this module."
)
@click.option("--fingerprint", metavar="HEX", help="Also require this fingerprint.")
@json_option
@click.pass_context
def verify(
    context: click.Context,
    artifact: Path,
    attestation: Path | None,
    keys: tuple[str, ...],
    module: str | None,
    fingerprint: str | None,
) -> None:
    """Check that a trusted key signed an artifact's file. Calls no daemon."""
    session: Session = context.obj
    trusted = _trusted(keys)
    envelope = attestation or attestation_path(artifact)
    if not envelope.exists():
        raise click.UsageError(f"there is no {envelope}: give the attestation with --attestation")
    statement, key_id = _opened(envelope.read_bytes(), trusted)
    _check(statement, "artifact_sha256", hashlib.sha256(artifact.read_bytes()).hexdigest())
    if module is not None:
        _check(statement, "module_sha256", identify(module).sha256)
    if fingerprint is not None:
        _check(statement, "fingerprint", fingerprint.lower())
    unchecked = {
        "module": None if module is not None else _WITHOUT_MODULE,
        "fingerprint": None if fingerprint is not None else _WITHOUT_FINGERPRINT,
    }
    claims = statement.claims
    document = {
        "verified": True,
        "not_checked": [name for name, why in unchecked.items() if why],
        "key_id": key_id,
        "artifact_sha256": claims.artifact_sha256,
        "module_sha256": claims.module_sha256,
        "fingerprint": claims.fingerprint,
        "kind": claims.kind,
        "engine": dict(claims.engine),
        "target": claims.target,
        "cpu": claims.cpu,
        "settings": dict(claims.settings),
        "daemon_version": statement.daemon_version,
        "finished_on": statement.finished_on,
        "compile_time_s": statement.compile_time_s,
    }
    session.emit(document, tables.verified(str(artifact), statement, key_id))
    for why in filter(None, unchecked.values()):
        session.note(f"not checked: {why}")


def _opened(envelope: bytes, trusted: TrustedKeys) -> tuple[Statement, str]:
    try:
        return open_envelope(envelope, trusted)
    except AttestationInvalid as invalid:
        # Easy to mix up: both are 64 hex digits, side by side in `keys ls`.
        if any(key.hex in invalid.message for key in trusted.values()):
            raise AttestationInvalid(
                "the trusted key is only the *id* of the key that signed: give its public key, the"
                " last column of `wasmkilnd keys ls`",
                metadata=invalid.metadata,
            ) from None
        raise


def _trusted(keys: tuple[str, ...]) -> TrustedKeys:
    try:
        trusted = TrustedKeys.choose(keys or None)
    except ValueError as error:
        raise click.UsageError(str(error)) from error
    if not trusted:
        raise click.UsageError("no trusted key: give --key, or set WASMKILN_TRUSTED_KEYS")
    return trusted


def _check(statement: Statement, name: str, actual: str) -> None:
    attested = getattr(statement.claims, name)
    if attested != actual:
        raise AttestationInvalid(
            f"the attestation is about another {name.replace('_', ' ')}: {attested}, not {actual}",
            metadata={"cause": MISMATCH},
        )
