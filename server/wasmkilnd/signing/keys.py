"""The keys of a daemon: the one that it signs with, and those that it trusts.

A key is Ed25519, and its id the SHA-256 of its public half. A daemon signs with the setting
``signing_key``, else with the key in its key directory, which the first start makes. It trusts
its own key, those in the directory, and those that ``trusted_keys`` names, less the ids in
``revoked/``. Keys are read at start and at a reload (``open_keys``).

::

    <keys>/              0700
    <keys>/signing.pem   0600  the private key, PKCS #8
    <keys>/next.pem      0600  the key to sign with later, while others learn to trust it
    <keys>/trusted/      0700  <key id>.pem: public keys, this one's and others'
    <keys>/revoked/      0700  <key id>.json: keys that count no more
    <keys>/.lock         0600  held by the process that changes something

The public key is written before its private key signs anything, and stays when the private key is
replaced: so rotation loses no value. Several daemons, on several machines, may share a directory.
"""

from __future__ import annotations

import base64
import contextlib
import re
import stat
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import structlog
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from wasmkiln.attestation import (
    REVOKED_FOLDER,
    PublicKey,
    TrustedKeys,
    read_revocations,
    write_revocation,
)

from wasmkilnd.files.ownership import NotOurs, check_path, make_folder
from wasmkilnd.files.whole_files import locked, write_whole
from wasmkilnd.settings import Settings

log = structlog.get_logger("wasmkilnd.keys")

_HEX = re.compile(r"[0-9a-fA-F]{64}")


class KeysUnusable(Exception):  # noqa: N818 - a state, shown to the operator
    """The daemon cannot use its keys. The message says why and what to do, and holds no secret."""


class PrivateKey:
    """An Ed25519 private key. Text and repr show the public half's id only."""

    def __init__(self, key: Ed25519PrivateKey) -> None:
        self._key = key
        self.public = PublicKey(key.public_key().public_bytes_raw())

    @classmethod
    def generate(cls) -> PrivateKey:
        """Make a new key."""
        return cls(Ed25519PrivateKey.generate())

    @classmethod
    def parse(cls, text: str) -> PrivateKey:
        r"""Read unencrypted PKCS #8 PEM, or base64 or hex of the 32 bytes.

        PEM may have its line breaks as ``\n``, which is how an environment variable often
        comes. Raises ValueError, which holds nothing of the text.
        """
        text = text.strip().replace("\\n", "\n")
        key = None
        with contextlib.suppress(ValueError, TypeError, UnsupportedAlgorithm):
            if "-----BEGIN" in text:
                key = serialization.load_pem_private_key(text.encode(), password=None)
            else:
                is_hex = _HEX.fullmatch(text)
                seed = bytes.fromhex(text) if is_hex else base64.b64decode(text, validate=True)
                key = Ed25519PrivateKey.from_private_bytes(seed)
        # Not from the library's error: its message may quote what it read.
        if not isinstance(key, Ed25519PrivateKey):
            raise ValueError(
                "it is not an Ed25519 private key: write unencrypted PKCS #8 PEM, or base64 of its"
                " 32 bytes"
            )
        return cls(key)

    @property
    def pem(self) -> bytes:
        """The secret itself as PKCS #8 PEM."""
        return self._key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )

    @property
    def base64(self) -> str:
        """The secret itself as one line, for an environment variable."""
        return base64.b64encode(self._key.private_bytes_raw()).decode()

    def sign(self, message: bytes) -> bytes:
        """Return the signature of ``message``."""
        return self._key.sign(message)

    def __repr__(self) -> str:
        return f"PrivateKey({self.public.id})"


class KeyStore:
    """A key directory. Safe for use by several processes at once; every method may block.

    A user who can change something in it decides whose native code callers run. So every method
    raises KeysUnusable where the directory, ``trusted/``, a key in it or a folder above belongs to
    a user other than this one and root, or where other users may write to it.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._signing = folder / "signing.pem"
        self._next = folder / "next.pem"
        self._trusted = folder / "trusted"
        self._revoked = folder / REVOKED_FOLDER

    def signing_key(self) -> PrivateKey | None:
        """Return the signing key, None if there is none. Raises KeysUnusable."""
        return self._private(self._signing)

    def next_key(self) -> PrivateKey | None:
        """Return the key to sign with later, None if there is none. Raises KeysUnusable."""
        return self._private(self._next)

    def ensure(self) -> PrivateKey:
        """Return the signing key; make it if there is none yet. Raises KeysUnusable.

        Of several processes that start at once on an empty directory, the first makes the key
        and the others find it.
        """
        # First without the lock: a directory that is mounted read-only is enough to sign.
        key = self.signing_key()
        if key is None:
            with self._locked():
                key = self.signing_key() or self._make(self._signing)
        return key

    def generate(self) -> PrivateKey:
        """Make the signing key. Raises KeysUnusable, also if there is one."""
        remedy = "replace it with `wasmkilnd keys rotate`"
        return self._make_first(self._signing, "a signing key", remedy)

    def rotate(self) -> PrivateKey:
        """Replace the signing key; the old one stays trusted. Raises KeysUnusable."""
        with self._locked():
            if old := self.signing_key():
                self._trust(old.public)
            return self._make(self._signing)

    def generate_next(self) -> PrivateKey:
        """Make the key to sign with later. Raises KeysUnusable, also if there is one."""
        remedy = "sign with it by `wasmkilnd keys activate`, or delete the file"
        return self._make_first(self._next, "a next key", remedy)

    def activate(self) -> PrivateKey:
        """Sign with the next key from now on; the old one stays trusted. Raises KeysUnusable."""
        with self._locked():
            key = self.next_key()
            if key is None:
                raise KeysUnusable(
                    f"cannot activate: there is no {self._next}; make it with `wasmkilnd keys"
                    " generate --next`"
                )
            self._trust(key.public)
            if old := self.signing_key():
                self._trust(old.public)
            self._next.replace(self._signing)
            return key

    def trust(self, key: PublicKey) -> None:
        """Trust another daemon's key. Raises KeysUnusable."""
        with self._locked():
            self._trust(key)

    def distrust(self, key_id: str) -> None:
        """Stop trusting a key. Raises KeysUnusable, also for a key that is not trusted here."""
        with self._locked():
            signing, later = self.signing_key(), self.next_key()
            # By content and not by name: an operator may have put a file there by hand.
            by_file = {file: read_public(file) for file in self._trusted.glob("*.pem")}
            files = [file for file, keys in by_file.items() if key_id in keys]
            why = ""
            if signing and signing.public.id == key_id:
                why = "this daemon signs with it; run `wasmkilnd keys rotate` first"
            elif later and later.public.id == key_id:
                why = f"it is the next key; delete {self._next} first"
            elif not files:
                why = (
                    f"it is not the id of a key in {self._trusted}; `wasmkilnd keys ls` shows the"
                    " keys. Take a key that WASMKILN_TRUSTED_KEYS names out of that variable"
                )
            elif crowded := [file for file in files if len(by_file[file]) > 1]:
                why = f"{crowded[0]} holds other keys too; take it out by hand"
            if why:
                raise KeysUnusable(f"cannot distrust {key_id}: {why}")
            for file in files:
                file.unlink()

    def revoke(self, key_id: str) -> None:
        """Let nothing count that a key signed. Raises KeysUnusable."""
        with self._locked():
            self._revoked.mkdir(mode=0o700, exist_ok=True)
            write_whole(self._revoked / f"{key_id}.json", write_revocation(key_id))

    def trusted(self) -> TrustedKeys:
        """Return the public keys that are trusted, and the ids that are revoked.

        Raises KeysUnusable.
        """
        with _as_keys_unusable(self._trusted):
            self._refuse_open_folders()
            for file in (*self._trusted.rglob("*.pem"), *self._revoked.glob("*.json")):
                check_path(file, private=True)
            keys = read_public(self._trusted) if self._trusted.is_dir() else TrustedKeys()
            return TrustedKeys(keys.values(), read_revocations(self._revoked))

    def _private(self, path: Path) -> PrivateKey | None:
        with _as_keys_unusable(self.folder):
            self._refuse_open_folders()
            try:
                # A group may read the key: so Kubernetes mounts a volume of secrets for a user.
                check_path(path, private=True, secret=True)
                # Bytes that are not text are replaced, and no key has such characters.
                return PrivateKey.parse(path.read_text(errors="replace"))
            except FileNotFoundError:
                return None
            except ValueError as error:
                raise KeysUnusable(f"{path}: {error}") from None

    def _make_first(self, path: Path, what: str, remedy: str) -> PrivateKey:
        with self._locked():
            if self._private(path):
                raise KeysUnusable(f"cannot make {what}: {path} exists; {remedy}")
            return self._make(path)

    def _make(self, path: Path) -> PrivateKey:
        key = PrivateKey.generate()
        self._trust(key.public)
        write_whole(path, key.pem)
        return key

    def _trust(self, key: PublicKey) -> None:
        path = self._trusted / f"{key.id}.pem"
        if not path.exists():
            self._trusted.mkdir(mode=0o700, exist_ok=True)
            write_whole(path, key.pem.encode())

    def _refuse_open_folders(self) -> None:
        # Check before reading anything: after this only this user and root can change the folders.
        for folder in (self.folder, self._trusted, self._revoked):
            with contextlib.suppress(OSError):
                found = folder.stat()
                others = found.st_mode & (stat.S_IWGRP | stat.S_IWOTH)
                if found.st_uid == 0 and others and found.st_mode & stat.S_ISVTX:
                    raise NotOurs(
                        f"cannot use {folder} as the directory of keys: other users may add files"
                        " to it, as to a mounted Secret; leave keys_dir out, and hand over its key"
                        " in WASMKILN_SIGNING_KEY, and other keys in WASMKILN_TRUSTED_KEYS"
                    )
            check_path(folder, private=True)

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        with _as_keys_unusable(self.folder):
            make_folder(self.folder, private=True)
            self._refuse_open_folders()
            with locked(self.folder):
                yield


@dataclass(frozen=True, slots=True, eq=False)
class Keys:
    """The keys at one moment. Those of another are others, whatever they are."""

    signing: PrivateKey | None
    """None where there is no key yet, and where nothing is signed."""
    trusted: TrustedKeys
    store: KeyStore | None = None
    """Where keys of other daemons may appear."""

    @property
    def own_id(self) -> str:
        """The id of the key to sign with."""
        return self.signing.public.id if self.signing else ""

    def refuse_revoked(self) -> None:
        """Raise KeysUnusable if the key to sign with is revoked."""
        if self.own_id in self.trusted.revoked:
            raise KeysUnusable(
                f"cannot sign with {self.own_id}: this key is revoked; make another with"
                " `wasmkilnd keys rotate`, or change WASMKILN_SIGNING_KEY"
            )

    def with_new(self) -> Keys:
        """Return these and the keys that came into the directory since. May block.

        What these revoke stays as it is, and a key that is revoked in the directory does not come.
        Raises KeysUnusable.
        """
        if self.store is None:
            return self
        found = self.store.trusted()
        new = [key for key in found.values() if key.id not in found.revoked | self.trusted.keys()]
        for key in new:
            log.info("key added", key_id=key.id)
        trusted = TrustedKeys([*self.trusted.values(), *new], self.trusted.revoked)
        return Keys(self.signing, trusted, self.store)


def open_keys(settings: Settings) -> Keys:
    """Return the keys that a daemon with ``settings`` uses; make what is missing. May block.

    Raises KeysUnusable.
    """
    if not settings.signing_key.get_secret_value():
        KeyStore(settings.effective_keys_dir).ensure()
    keys = read_keys(settings)
    keys.refuse_revoked()
    return keys


def read_keys(settings: Settings) -> Keys:
    """Return the keys that a daemon with ``settings`` would use, and make none. May block.

    Raises KeysUnusable.
    """
    given, store = settings.signing_key.get_secret_value(), KeyStore(settings.effective_keys_dir)
    try:
        signing = PrivateKey.parse(given) if given else store.signing_key()
    except ValueError as error:
        raise KeysUnusable(f"WASMKILN_SIGNING_KEY: {error}") from None
    own = [signing.public] if signing else []
    named, stored = read_public(settings.trusted_keys, "WASMKILN_TRUSTED_KEYS: "), store.trusted()
    keys = [*own, *named.values(), *stored.values()]
    return Keys(signing, TrustedKeys(keys, named.revoked | stored.revoked), store)


def changes(old: Keys, new: Keys) -> list[tuple[str, dict[str, str]]]:
    """Return what differs, in the words of the audit, and log a line for each."""
    found: list[tuple[str, dict[str, str]]] = []
    if old.own_id != new.own_id:
        found.append(("signing_key", {"key_id": new.own_id, "before": old.own_id}))
        log.info("signing key changed", old=old.own_id, new=new.own_id)
    for key_id in sorted(new.trusted.keys() - old.trusted.keys()):
        found.append(("key_trusted", {"key_id": key_id}))
        log.info("key added", key_id=key_id)
    for key_id in sorted(old.trusted.keys() - new.trusted.keys()):
        found.append(("key_distrusted", {"key_id": key_id}))
        log.warning("key no longer trusted", key_id=key_id)
    for key_id in sorted(new.trusted.revoked - old.trusted.revoked):
        found.append(("key_revoked", {"key_id": key_id}))
        log.warning("key revoked", key_id=key_id)
    return found


def read_public(sources: Path | Sequence[str], named_by: str = "") -> TrustedKeys:
    """Return the keys of files, folders and texts. ``named_by`` begins what KeysUnusable says."""
    try:
        return TrustedKeys.read(sources)
    except ValueError as error:
        why = str(error)
    except OSError as error:
        why = f"cannot read {error.filename}: {error.strerror}"
    raise KeysUnusable(f"{named_by}{why}")


@contextlib.contextmanager
def _as_keys_unusable(path: Path) -> Iterator[None]:
    try:
        yield
    except (NotOurs, ValueError) as refusal:
        raise KeysUnusable(str(refusal)) from None
    except OSError as error:
        raise KeysUnusable(f"{error.filename or path}: {error.strerror}") from None
