"""``wasmkilnd keys``: the keys that sign artifacts, and which of them are trusted."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
from wasmkiln.trusted_keys import PublicKey

from wasmkilnd.commands.as_owner import settings_of
from wasmkilnd.commands.audited import audit_command
from wasmkilnd.model import SHA256_HEX
from wasmkilnd.settings import Settings
from wasmkilnd.settings_loader import FlagValue
from wasmkilnd.signing.keys import KeyStore, KeysUnusable, PrivateKey, read_keys, read_public

_HELP = {"help_option_names": ["-h", "--help"]}


def _where(command: Callable[..., Any]) -> Callable[..., Any]:
    for name, variable, text in (
        ("--keys-dir", "WASMKILN_KEYS_DIR", "The directory of the keys, instead of keys/ there."),
        ("--state-dir", "WASMKILN_STATE_DIR", "The state directory, which contains keys/."),
    ):
        help_text = f"{text}  [env: {variable}]"
        command = click.option(name, type=str, default=None, metavar="DIR", help=help_text)(command)
    return command


@click.group(context_settings=_HELP)
def keys() -> None:
    """Make, list, replace, trust, distrust and revoke the keys that artifacts are signed with."""


@keys.command(context_settings=_HELP)
@click.option(
    "--print",
    "print_only",
    is_flag=True,
    help="Store nothing: print the private key, for WASMKILN_SIGNING_KEY, on standard output and"
    " the public key on standard error.",
)
@click.option(
    "--next",
    "for_later",
    is_flag=True,
    help="Make the key to sign with later: it is used from `keys activate` on, when other daemons"
    " and clients trust it.",
)
@_where
def generate(
    print_only: bool, for_later: bool, keys_dir: str | None, state_dir: str | None
) -> None:
    """Make the signing key. `serve` makes one by itself if there is none."""
    if print_only:
        key = PrivateKey.generate()
        click.echo(key.base64)
        click.echo(f"public key {key.public.hex} (id {key.public.id})", err=True)
        return
    if for_later:
        key = _own_store("make a next key", keys_dir, state_dir).generate_next()
        _tell("key_made", key.public.id, keys_dir, state_dir)
        click.echo(
            f"made key {key.public.id}: daemons sign with it after `wasmkilnd keys activate`"
        )
        click.echo(f"have the other daemons trust it: wasmkilnd keys trust {key.public.hex}")
        return
    key = _store(keys_dir, state_dir).generate()
    _tell("key_made", key.public.id, keys_dir, state_dir)
    click.echo(f"made key {key.public.id}: daemons sign with it from now on")


@keys.command(name="ls", context_settings=_HELP)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@_where
def list_keys(as_json: bool, keys_dir: str | None, state_dir: str | None) -> None:
    """List the signing key and the trusted keys: id, role, public key in hex.

    Includes WASMKILN_SIGNING_KEY and WASMKILN_TRUSTED_KEYS, as `serve` does.
    """
    settings = _settings(keys_dir, state_dir)
    store, keys = KeyStore(settings.effective_keys_dir), read_keys(settings)
    later, trusted = store.next_key(), keys.trusted
    rows = [
        {
            "id": key.id,
            "role": _role(key, keys.signing, later),
            "key": key.hex,
        }
        | ({"revoked": "altogether"} if key.id in trusted.revoked else {})
        for key in trusted.values()
    ]
    if as_json:
        click.echo(json.dumps(rows, indent=2))
        return
    if rows:
        click.echo(f"{'id':<64}  {'role':<7}  public key")
    for row in rows:
        about = "  revoked" if "revoked" in row else ""
        click.echo(f"{row['id']}  {row['role']:<7}  {row['key']}{about}")
    if not rows:
        click.echo(f"there is no key in {store.folder}: `wasmkilnd serve` makes one", err=True)


@keys.command(context_settings=_HELP)
@_where
def rotate(keys_dir: str | None, state_dir: str | None) -> None:
    """Replace the signing key. The old key stays trusted, so no artifact is lost.

    Daemons sign with the new key after a reload (SIGHUP) or a restart. Daemons that share the
    directory trust it at once.
    """
    key = _own_store("rotate", keys_dir, state_dir).rotate()
    _tell("key_made", key.public.id, keys_dir, state_dir)
    click.echo(
        f"made key {key.public.id}: daemons sign with it after a reload; the old key stays trusted"
    )


@keys.command(context_settings=_HELP)
@click.option("--next", "for_later", is_flag=True, help="Show the key to sign with later.")
@click.option("--pem", is_flag=True, help="Print PEM instead of hex.")
@_where
def show(for_later: bool, pem: bool, keys_dir: str | None, state_dir: str | None) -> None:
    """Print the public half of the signing key, for others to trust it."""
    settings = _settings(keys_dir, state_dir)
    store, given = KeyStore(settings.effective_keys_dir), settings.signing_key.get_secret_value()
    if for_later:
        key, how = store.next_key(), "`wasmkilnd keys generate --next`"
    else:
        key = PrivateKey.parse(given) if given else store.signing_key()
        how = "`wasmkilnd keys generate`"
    if key is None:
        raise KeysUnusable(f"there is no such key in {store.folder}: make it with {how}")
    click.echo(key.public.pem if pem else key.public.hex, nl=not pem)


@keys.command(context_settings=_HELP)
@_where
def activate(keys_dir: str | None, state_dir: str | None) -> None:
    """Sign with the key that `keys generate --next` made. The old key stays trusted.

    First have all other daemons and clients trust it: they refuse what a key signed that they do
    not trust. Daemons sign with the new key after a reload (SIGHUP) or a restart.
    """
    key = _own_store("activate", keys_dir, state_dir).activate()
    _tell("key_activated", key.public.id, keys_dir, state_dir)
    click.echo(f"daemons sign with {key.public.id} after a reload; the old key stays trusted")


@keys.command(context_settings=_HELP)
@click.argument("public_keys", nargs=-1, required=True, metavar="KEY|FILE|DIR...")
@_where
def trust(public_keys: tuple[str, ...], keys_dir: str | None, state_dir: str | None) -> None:
    """Trust public keys of other daemons: hex, base64, PEM files, or folders of PEM files."""
    trusted, store = read_public(public_keys), _store(keys_dir, state_dir)
    for key in trusted.values():
        store.trust(key)
        _tell("key_trusted", key.id, keys_dir, state_dir)
        click.echo(f"key {key.id} is trusted now")


@keys.command(context_settings=_HELP)
@click.argument("key_ids", nargs=-1, required=True, metavar="KEYID...")
@_where
def distrust(key_ids: tuple[str, ...], keys_dir: str | None, state_dir: str | None) -> None:
    """Stop trusting keys, by the ids that `keys ls` shows.

    Daemons reject what these keys signed. A running daemon forgets them on SIGHUP.
    """
    store = _store(keys_dir, state_dir)
    for key_id in key_ids:
        store.distrust(key_id)
        _tell("key_distrusted", key_id, keys_dir, state_dir)
        click.echo(f"key {key_id} is no longer trusted; running daemons forget it on SIGHUP")


@keys.command(context_settings=_HELP)
@click.argument("key_ids", nargs=-1, required=True, metavar="KEYID...")
@click.option("--since", hidden=True)
@_where
def revoke(
    key_ids: tuple[str, ...], since: str | None, keys_dir: str | None, state_dir: str | None
) -> None:
    """Revoke keys, by the ids that `keys ls` shows: nothing counts that they signed.

    A running daemon refuses it from the next reload on (SIGHUP), and a client from its next start.
    Revoke a key in the key directory of each daemon, or share one.
    """
    if since is not None:
        raise KeysUnusable(
            "cannot revoke since a date: leave --since out, and all that the keys signed is refused"
        )
    settings = _settings(keys_dir, state_dir)
    store, signing = KeyStore(settings.effective_keys_dir), read_keys(settings).signing
    for key_id in key_ids:
        if not SHA256_HEX.fullmatch(key_id):
            raise KeysUnusable(f"cannot revoke {key_id}: a key's id is 64 hex digits")
        if signing and signing.public.id == key_id:
            raise KeysUnusable(
                f"cannot revoke {key_id}: this daemon signs with it; replace it first, with"
                " `wasmkilnd keys rotate` or in WASMKILN_SIGNING_KEY"
            )
        store.revoke(key_id)
        _tell("key_revoked", key_id, keys_dir, state_dir)
        click.echo(f"key {key_id} is revoked; running daemons refuse what it signed after a reload")


def _role(key: PublicKey, signing: PrivateKey | None, later: PrivateKey | None) -> str:
    if signing and key == signing.public:
        return "signing"
    return "next" if later and key == later.public else "trusted"


def _tell(what: str, key_id: str, keys_dir: str | None, state_dir: str | None) -> None:
    audit_command(_settings(keys_dir, state_dir), what, key_id=key_id)


def _settings(keys_dir: str | None, state_dir: str | None) -> Settings:
    given = {"keys_dir": keys_dir, "state_dir": state_dir}
    flags: dict[str, FlagValue] = {name: value for name, value in given.items() if value}
    return settings_of(flags, folder=_of_the_service)


def _of_the_service(settings: Settings) -> Path:
    """Return the folder whose owner the daemon runs as."""
    keys_dir = settings.effective_keys_dir
    apart = not keys_dir.is_relative_to(settings.state_dir)
    return keys_dir if apart and keys_dir.exists() else settings.state_dir


def _own_store(doing: str, keys_dir: str | None, state_dir: str | None) -> KeyStore:
    """Return the key directory. Raises KeysUnusable if the daemons sign with another key."""
    settings = _settings(keys_dir, state_dir)
    if settings.signing_key.get_secret_value():
        raise KeysUnusable(
            f"cannot {doing}: WASMKILN_SIGNING_KEY is set, and daemons sign with that key; see"
            " docs/how-to/keys.md for how to replace it"
        )
    return KeyStore(settings.effective_keys_dir)


def _store(keys_dir: str | None, state_dir: str | None) -> KeyStore:
    return KeyStore(_settings(keys_dir, state_dir).effective_keys_dir)
