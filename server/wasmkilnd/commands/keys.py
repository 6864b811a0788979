"""``wasmkilnd keys``: the keys that sign artifacts, and which of them are trusted."""

from __future__ import annotations

from collections.abc import Sequence

import click

from wasmkilnd.commands.shared import audit_change, json_option, print_rows, say, with_settings
from wasmkilnd.model import SHA256_HEX
from wasmkilnd.settings import Settings
from wasmkilnd.signing.keys import KeyStore, KeysUnusable, PrivateKey, read_keys, read_public

_settings = with_settings("state_dir", "keys_dir")
_ids = click.argument("key_ids", nargs=-1, required=True, metavar="KEYID...")


@click.group()
def keys() -> None:
    """Make, list, replace, trust, distrust and revoke the keys that artifacts are signed with."""


@keys.command()
@click.option("--print", "print_only", is_flag=True, help="Print the private key; store nothing.")
@click.option("--next", "for_later", is_flag=True, help="Make the key that `activate` signs with.")
@_settings
def generate(settings: Settings, print_only: bool, for_later: bool) -> None:
    """Make the signing key. `serve` makes one by itself if there is none.

    With --next, make the key to sign with later, once other daemons and clients trust it. With
    --print, print one for WASMKILN_SIGNING_KEY, and its public key on standard error.
    """
    if print_only:
        key = PrivateKey.generate()
        click.echo(key.base64)
        say(f"public key {key.public.hex} (id {key.public.id})")
    elif for_later:
        key = _own_store(settings, "make a next key").generate_next()
        then = f"`wasmkilnd keys activate`; first, elsewhere: wasmkilnd keys trust {key.public.hex}"
        _tell(settings, "key_made", key.public.id, f"is made: daemons sign with it after {then}")
    else:
        key = _store(settings).generate()
        _tell(settings, "key_made", key.public.id, "is made: daemons sign with it from now on")


@keys.command()
@json_option
@_settings
def ls(settings: Settings, as_json: bool) -> None:
    """List the signing key, trusted and revoked keys: id, role, public key in hex.

    Includes WASMKILN_SIGNING_KEY and WASMKILN_TRUSTED_KEYS, as `serve` does.
    """
    store, found = _store(settings), read_keys(settings)
    later, trusted = store.next_key(), found.trusted
    roles = {later.public.id: "next"} if later else {}
    roles |= {found.own_id: "signing"} | dict.fromkeys(trusted.revoked, "revoked")
    # A key can be revoked of which this daemon has the id alone.
    rows = [
        {"id": each, "role": roles.get(each, "trusted"), "key": key.hex if key else ""}
        for each in dict.fromkeys((*trusted, *sorted(trusted.revoked)))
        for key in [trusted.get(each)]
    ]
    none = f"there is no key in {store.folder}: `wasmkilnd serve` makes one"
    print_rows(rows, none, as_json=as_json)


@keys.command()
@_settings
def rotate(settings: Settings) -> None:
    """Replace the signing key. The old key stays trusted, so no artifact is lost.

    Daemons sign with the new key after a reload (SIGHUP) or a restart. Daemons that share the
    directory trust it at once.
    """
    key = _own_store(settings, "rotate").rotate()
    said = "is made: daemons sign with it after a reload; the old key stays trusted"
    _tell(settings, "key_made", key.public.id, said)


@keys.command()
@click.option("--next", "for_later", is_flag=True, help="Show the key to sign with later.")
@click.option("--pem", is_flag=True, help="Print PEM instead of hex.")
@_settings
def show(settings: Settings, for_later: bool, pem: bool) -> None:
    """Print the public half of the signing key, for others to trust it."""
    store = _store(settings)
    key = store.next_key() if for_later else read_keys(settings).signing
    if key is None:
        how = f"`wasmkilnd keys generate{' --next' if for_later else ''}`"
        raise KeysUnusable(f"there is no such key in {store.folder}: make it with {how}")
    click.echo(key.public.pem if pem else key.public.hex, nl=not pem)


@keys.command()
@_settings
def activate(settings: Settings) -> None:
    """Sign with the key that `keys generate --next` made. The old key stays trusted.

    First have all other daemons and clients trust it: they refuse what a key signed that they do
    not trust. Daemons sign with the new key after a reload (SIGHUP) or a restart.
    """
    key = _own_store(settings, "activate").activate()
    said = "signs what daemons store after a reload; the old key stays trusted"
    _tell(settings, "key_activated", key.public.id, said)


@keys.command()
@click.argument("public_keys", nargs=-1, required=True, metavar="KEY|FILE|DIR...")
@_settings
def trust(settings: Settings, public_keys: Sequence[str]) -> None:
    """Trust public keys of other daemons: hex, base64, PEM files, or folders of PEM files."""
    for key in read_public(public_keys).values():
        _store(settings).trust(key)
        _tell(settings, "key_trusted", key.id, "is trusted now")


@keys.command()
@_ids
@_settings
def distrust(settings: Settings, key_ids: Sequence[str]) -> None:
    """Stop trusting keys, by the ids that `keys ls` shows.

    Daemons reject what these keys signed. A running daemon forgets them on SIGHUP.
    """
    for key_id in key_ids:
        _store(settings).distrust(key_id)
        said = "is no longer trusted; running daemons forget it on SIGHUP"
        _tell(settings, "key_distrusted", key_id, said)


@keys.command()
@_ids
@_settings
def revoke(settings: Settings, key_ids: Sequence[str]) -> None:
    """Revoke keys, by the ids that `keys ls` shows: nothing counts that they signed.

    A running daemon refuses it from the next reload on (SIGHUP), and a client from its next start.
    Revoke a key in the key directory of each daemon, or share one.
    """
    for key_id in key_ids:
        if not SHA256_HEX.fullmatch(key_id):
            raise KeysUnusable(f"cannot revoke {key_id}: a key's id is 64 hex digits")
        if key_id == read_keys(settings).own_id:
            raise KeysUnusable(
                f"cannot revoke {key_id}: this daemon signs with it; replace it first, with"
                " `wasmkilnd keys rotate` or in WASMKILN_SIGNING_KEY"
            )
        _store(settings).revoke(key_id)
        said = "is revoked; running daemons refuse what it signed after a reload"
        _tell(settings, "key_revoked", key_id, said)


def _tell(settings: Settings, what: str, key_id: str, said: str) -> None:
    audit_change(settings, what, key_id=key_id)
    click.echo(f"key {key_id} {said}")


def _own_store(settings: Settings, doing: str) -> KeyStore:
    """Return the key directory. Raises KeysUnusable if the daemons sign with another key."""
    if settings.signing_key.get_secret_value():
        raise KeysUnusable(
            f"cannot {doing}: WASMKILN_SIGNING_KEY is set, and daemons sign with that key; see"
            " docs/how-to/keys.md for how to replace it"
        )
    return _store(settings)


def _store(settings: Settings) -> KeyStore:
    return KeyStore(settings.effective_keys_dir)
