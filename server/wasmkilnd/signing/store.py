"""The key directory: one signing key, and the public keys that are trusted.

::

    <keys>/              0700
    <keys>/signing.pem   0600  the private key, PKCS #8
    <keys>/next.pem      0600  the key to sign with later, while others learn to trust it
    <keys>/trusted/      0700  <key id>.pem: public keys, this one's and others'
    <keys>/revoked/      0700  <key id>.json: revocations, made here or learned from the fleet
    <keys>/.lock         0600  held by the process that changes something

The store writes a public key before its private key signs anything, and keeps it when the
private key is replaced: every value is signed by a trusted key, and rotation loses none. Several
daemons, on several machines, may share the directory.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

from wasmkiln.revoked_keys import FOLDER, read_revocations, write_revocation
from wasmkiln.trusted_keys import PublicKey, TrustedKeys

from wasmkilnd.ownership import check_path, make_folder
from wasmkilnd.signing.files import KeysUnusable, as_keys_unusable, read_file, refuse_open_folder
from wasmkilnd.signing.private import PrivateKey
from wasmkilnd.whole_files import locked, write_whole


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
        self._revoked = folder / FOLDER

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
                key = self.signing_key() or self._replace()
        return key

    def generate(self) -> PrivateKey:
        """Make the signing key. Raises KeysUnusable, also if there is one."""
        with self._locked():
            if self.signing_key():
                raise KeysUnusable(
                    f"cannot make a signing key: {self._signing} exists; replace it with"
                    " `wasmkilnd keys rotate`"
                )
            return self._replace()

    def rotate(self) -> PrivateKey:
        """Replace the signing key; the old one stays trusted. Raises KeysUnusable."""
        with self._locked():
            old = self.signing_key()
            if old:
                self._trust(old.public)
            return self._replace()

    def generate_next(self) -> PrivateKey:
        """Make the key to sign with later. Raises KeysUnusable, also if there is one."""
        with self._locked():
            if self.next_key():
                raise KeysUnusable(
                    f"cannot make a next key: {self._next} exists; sign with it by `wasmkilnd keys"
                    " activate`, or delete the file"
                )
            return self._make(self._next)

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
            with as_keys_unusable(self._next):
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
            if signing and signing.public.id == key_id:
                raise KeysUnusable(
                    f"cannot distrust {key_id}: this daemon signs with it; run"
                    " `wasmkilnd keys rotate` first"
                )
            if later and later.public.id == key_id:
                raise KeysUnusable(
                    f"cannot distrust {key_id}: it is the next key; delete {self._next} first"
                )
            # By content and not by name: an operator may have put a file there by hand.
            held = {file: _read_trusted(file) for file in self._trusted.glob("*.pem")}
            files = [file for file, keys in held.items() if key_id in keys]
            if not files:
                raise KeysUnusable(
                    f"cannot distrust {key_id}: it is not the id of a key in {self._trusted};"
                    " `wasmkilnd keys list` shows the keys. Take a key that WASMKILN_TRUSTED_KEYS"
                    " names out of that variable"
                )
            for file in files:
                if len(held[file]) > 1:
                    raise KeysUnusable(
                        f"cannot distrust {key_id}: {file} holds other keys too; take it out"
                        " by hand"
                    )
            for file in files:
                file.unlink()

    def trusted(self) -> TrustedKeys:
        """Return the public keys that are trusted. Raises KeysUnusable."""
        with as_keys_unusable(self._trusted):
            self._refuse_open_folders()
            if not self._trusted.is_dir():
                return TrustedKeys()
            for file in self._trusted.rglob("*.pem"):
                check_path(file, private=True)
            return _read_trusted(self._trusted)

    def revoked(self) -> dict[str, int]:
        """Return the ids of revoked keys, and from when on they are. Raises KeysUnusable."""
        with as_keys_unusable(self._revoked):
            self._refuse_open_folders()
            for file in self._revoked.glob("*.json"):
                check_path(file, private=True)
            try:
                return read_revocations(self._revoked)
            except ValueError as error:
                raise KeysUnusable(str(error)) from None

    def revoke(self, key_id: str, since_ms: int) -> bool:
        """Revoke a key from a time on; return False if it is revoked since before that.

        Raises KeysUnusable.
        """
        with self._locked():
            known_ms = self.revoked().get(key_id)
            if known_ms is not None and known_ms <= since_ms:
                return False
            self._revoked.mkdir(mode=0o700, exist_ok=True)
            write_whole(self._revoked / f"{key_id}.json", write_revocation(key_id, since_ms))
            return True

    def find(self, key_id: str) -> PublicKey | None:
        """Return the trusted key with this id, if it lies here. Raises KeysUnusable."""
        with as_keys_unusable(self._trusted):
            self._refuse_open_folders()
            text = read_file(self._trusted / f"{key_id}.pem")
        if text is None:
            return None
        with contextlib.suppress(ValueError):
            key = PublicKey.parse(text)
            if key.id == key_id:
                return key
        raise KeysUnusable(f"{self._trusted}/{key_id}.pem does not hold the key that its name says")

    def _private(self, path: Path) -> PrivateKey | None:
        with as_keys_unusable(self.folder):
            self._refuse_open_folders()
            # A group may read the key: so Kubernetes mounts a volume of secrets for a user.
            text = read_file(path, secret=True)
        if text is None:
            return None
        try:
            return PrivateKey.parse(text)
        except ValueError as error:
            raise KeysUnusable(f"{path}: {error}") from None

    def _replace(self) -> PrivateKey:
        return self._make(self._signing)

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
            refuse_open_folder(folder)

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        with as_keys_unusable(self.folder):
            make_folder(self.folder, private=True)
            self._refuse_open_folders()
            with locked(self.folder):
                yield


def _read_trusted(path: Path) -> TrustedKeys:
    try:
        return TrustedKeys.read(path)
    except ValueError as error:
        raise KeysUnusable(str(error)) from None
