"""Keys that a CA for code signing vouches for."""

from __future__ import annotations

import time
from datetime import timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.x509.oid import ExtendedKeyUsageOID
from hypothesis import given
from hypothesis import strategies as st
from wasmkiln import Artifact, AttestationInvalid
from wasmkiln.certificates import MAX_CHAIN_BYTES, CodeSigningCAs, key_of
from wasmkiln.trusted_keys import TrustedKeys
from wasmkiln.v1 import types_pb2
from wasmkilnd.reloadable import Reloadable
from wasmkilnd.rpc.wire.headers import header_of
from wasmkilnd.signing.certified import CertifiedKeys
from wasmkilnd.signing.current import CurrentSealer
from wasmkilnd.signing.files import KeysUnusable
from wasmkilnd.signing.opening import Signing, open_ring
from wasmkilnd.signing.private import PrivateKey
from wasmkilnd.signing.ring import KeyRing
from wasmkilnd.signing.sealer import DsseSealer
from wasmkilnd.wire import payload_views

from tests.code_signing import DAY, CodeSigningCA
from tests.contract.sealing import OURS, THEIRS
from tests.contract.values import artifact
from tests.doubles.shelf import read, stored

CA, OTHER_CA = CodeSigningCA(), CodeSigningCA()
KEY = THEIRS.public
GOOD = CA.issue(KEY)


def test_a_certificate_by_the_ca_vouches_for_its_key() -> None:
    certified = CodeSigningCAs(CA.pem).certified(GOOD)
    assert certified.raw == KEY.raw == key_of(GOOD)
    assert 0 < certified.until_s - time.time() <= DAY.total_seconds()
    assert CodeSigningCAs(OTHER_CA.pem + CA.pem).certified(GOOD) == certified


def test_an_intermediate_ca_comes_along() -> None:
    root = CodeSigningCA("root", path_length=1)
    middle = CodeSigningCA("middle", root)
    chain = middle.issue(KEY)
    assert CodeSigningCAs(root.pem).certified(chain).raw == KEY.raw
    assert CodeSigningCAs(middle.pem).certified(chain).raw == KEY.raw
    with pytest.raises(ValueError, match="no trusted CA"):
        CodeSigningCAs(root.pem).certified(chain[: chain.index(b"-----END") + 25])
    strict = CodeSigningCA("root", path_length=0)
    with pytest.raises(ValueError, match="no trusted CA"):
        CodeSigningCAs(strict.pem).certified(CodeSigningCA("middle", strict).issue(KEY))


def _too_deep() -> tuple[CodeSigningCA, bytes]:
    root = ca = CodeSigningCA("0")
    for level in range(1, 6):
        ca = CodeSigningCA(str(level), ca)
    return root, ca.issue(KEY)


ODD = x509.NameConstraints([x509.DNSName("example.org")], None)
BAD = {
    "another CA": (OTHER_CA, GOOD, "no trusted CA"),
    "expired": (CA, CA.issue(KEY, since=-2 * DAY, until=-DAY), "expired"),
    "not yet": (CA, CA.issue(KEY, since=DAY, until=2 * DAY), "valid from"),
    "no purpose": (CA, CA.issue(KEY, purposes=()), "not for code signing"),
    "TLS": (CA, CA.issue(KEY, purposes=[ExtendedKeyUsageOID.SERVER_AUTH]), "not for code signing"),
    "critical": (CA, CA.issue(KEY, extension=ODD), "not understood"),
    "CA": (CA, CA.pem, "a CA's"),
    "too deep": (*_too_deep(), "no trusted CA"),
    "nothing": (CA, b"", "expected 1 to 8"),
    "garbage": (CA, b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----", "cannot read"),
    "long": (CA, b"x" * (MAX_CHAIN_BYTES + 1), "more than"),
}


@pytest.mark.parametrize(("ca", "chain", "why"), BAD.values(), ids=BAD)
def test_no_other_certificate_does(ca: CodeSigningCA, chain: bytes, why: str) -> None:
    with pytest.raises(ValueError, match=why):
        CodeSigningCAs(ca.pem).certified(chain)
    assert CertifiedKeys(CodeSigningCAs(ca.pem)).learn(chain)


def test_who_may_not_issue_does_not() -> None:
    root = CodeSigningCA("root")
    for bad in (
        CodeSigningCA("no CA", root, is_ca=False),
        CodeSigningCA("no issuer", root, may_issue=False),
        CodeSigningCA("expired", root, until=timedelta(hours=-1)),
    ):
        with pytest.raises(ValueError, match=r"no trusted CA|expired"):
            CodeSigningCAs(root.pem).certified(bad.issue(KEY))
    forged = CodeSigningCA("root")  # the same name, another key
    with pytest.raises(ValueError, match="no trusted CA"):
        CodeSigningCAs(root.pem).certified(forged.issue(KEY))


@given(st.binary(max_size=300))
def test_any_bytes_are_refused(chain: bytes) -> None:
    for text in (chain, b"-----BEGIN CERTIFICATE-----" + chain + b"-----END CERTIFICATE-----"):
        with pytest.raises(ValueError):
            CodeSigningCAs(CA.pem).certified(text)


def test_a_key_is_trusted_until_its_certificate_expires() -> None:
    now = [time.time()]
    certified = CertifiedKeys(CodeSigningCAs(CA.pem), lambda: now[0])
    assert certified.learn(GOOD) == ""
    assert certified.get(KEY.id) == KEY
    assert certified.keys == [KEY]
    assert not certified.drop_expired()
    now[0] += 2 * DAY.total_seconds()
    assert certified.get(KEY.id) is None
    assert certified.keys == [KEY]
    assert certified.drop_expired()
    assert (certified.keys, certified.chains) == ([], [])


def ring_in(tmp_path: Path, ca: CodeSigningCA | None, certificate: bytes = b"") -> KeyRing:
    ca_file, cert_file = tmp_path / "ca.pem", tmp_path / "cert.pem"
    if ca:
        ca_file.write_bytes(ca.pem)
    if certificate:
        cert_file.write_bytes(certificate)
    return open_ring(
        tmp_path / "keys",
        OURS.base64,
        (),
        str(ca_file) if ca else "",
        str(cert_file) if certificate else "",
    )


def current(ring: KeyRing) -> CurrentSealer:
    return CurrentSealer(Reloadable(Signing(ring, DsseSealer(ring.signing.signer(), ring, "1"))))


ONE = DsseSealer(THEIRS.signer(), TrustedKeys([KEY]), "1").seal(artifact(1, 300))


def test_a_daemon_finds_the_certificate_in_redis(tmp_path: Path) -> None:
    theirs = DsseSealer(THEIRS.signer(), TrustedKeys([KEY]), "1")
    values = stored(ONE, theirs)
    ours = current(ring_in(tmp_path, CA))
    assert read(values, ONE.key, ours) == (None, ["stranger"])
    for chain, causes in ((OTHER_CA.issue(KEY), ["stranger"]), (GOOD, [])):
        ours = current(ring_in(tmp_path, CA))
        found, rejected = read({**values, b"wasm:cert:" + KEY.id.encode(): chain}, ONE.key, ours)
        assert (rejected, found is not None) == (causes, not causes)
    assert ours.certificate_of(ONE) == GOOD
    # Without a CA nobody asks.
    ours = current(ring_in(tmp_path, None))
    assert read({**values, b"wasm:cert:" + KEY.id.encode(): GOOD}, ONE.key, ours)[0] is None


def test_a_daemon_finds_certificates_among_the_trusted_keys(tmp_path: Path) -> None:
    ring_in(tmp_path, CA)
    (tmp_path / "keys" / "trusted").mkdir(mode=0o700, parents=True, exist_ok=True)
    (tmp_path / "keys").chmod(0o700)
    (tmp_path / "keys" / "trusted" / "theirs.pem").write_bytes(GOOD)
    assert ring_in(tmp_path, CA).get(KEY.id) == KEY
    assert ring_in(tmp_path, OTHER_CA).get(KEY.id) is None
    assert ring_in(tmp_path, None).get(KEY.id) is None


def test_a_reload_keeps_certificates_that_still_count(tmp_path: Path) -> None:
    before = ring_in(tmp_path, CA)
    assert before.certified.learn(GOOD) == ""
    for ca, key in ((CA, KEY), (OTHER_CA, None), (None, None)):
        after = ring_in(tmp_path, ca)
        after.take_over(before)
        assert after.get(KEY.id) == key


def test_the_daemon_s_own_certificate_has_to_be_right(tmp_path: Path) -> None:
    own = CA.issue(OURS.public)
    assert ring_in(tmp_path, CA, own).certificate_of(OURS.public.id) == own
    assert ring_in(tmp_path, None, own).certificate_of(OURS.public.id) == own
    for ca, chain, why in (
        (CA, GOOD, "of another key"),
        (OTHER_CA, own, "no trusted CA"),
        (CA, CA.issue(OURS.public, since=-2 * DAY, until=-DAY), "expired"),
        (CA, b"nothing", "expected 1 to 8"),
    ):
        with pytest.raises(KeysUnusable, match=f"signing_cert_file .*{why}"):
            ring_in(tmp_path, ca, chain)
    (tmp_path / "ca.pem").write_bytes(own)
    with pytest.raises(KeysUnusable, match="no CA's certificate in it"):
        open_ring(tmp_path / "keys", OURS.base64, (), str(tmp_path / "ca.pem"))
    with pytest.raises(KeysUnusable, match=r"trusted_ca_file .*No such file"):
        open_ring(tmp_path / "keys", OURS.base64, (), str(tmp_path / "none.pem"))
    (tmp_path / "ca.pem").write_bytes(CA.pem)
    (tmp_path / "ca.pem").chmod(0o666)
    with pytest.raises(KeysUnusable, match=r"other users may write .* \(trusted_ca_file\)"):
        open_ring(tmp_path / "keys", OURS.base64, (), str(tmp_path / "ca.pem"))


def test_a_client_that_trusts_the_ca_accepts_the_key(tmp_path: Path) -> None:
    ca_file = tmp_path / "ca.pem"
    ca_file.write_bytes(CA.pem)
    payload = b"".join(bytes(view) for view in payload_views(ONE.frames))
    header = header_of(ONE, GOOD)
    assert Artifact(payload, header).verify(ca_file)
    assert Artifact(payload, header).verify(KEY.hex)
    for bad in (header_of(ONE), header_of(ONE, OTHER_CA.issue(KEY))):
        with pytest.raises(AttestationInvalid, match="not trusted"):
            Artifact(payload, bad).verify(ca_file)
    other = types_pb2.ArtifactHeader()
    other.CopyFrom(header)
    other.fingerprint = "0" * 64
    with pytest.raises(AttestationInvalid, match="another fingerprint"):
        Artifact(payload, other).verify(ca_file)
    saved = Artifact(payload, header).save(tmp_path / "m.cwasm")
    assert Artifact.open(saved, trusted_keys=ca_file).verify()


def test_a_ca_and_keys_together(tmp_path: Path) -> None:
    both = tmp_path / "both.pem"
    third = PrivateKey.generate().public
    both.write_bytes(CA.pem + third.pem.encode())
    trusted = TrustedKeys.read(both)
    assert list(trusted) == [third.id]
    assert set(trusted.with_signer(GOOD)) == {third.id, KEY.id}
    assert set(trusted.with_signer(b"")) == {third.id}
    assert TrustedKeys.choose(tmp_path / "both.pem")
    (tmp_path / "leaf.pem").write_bytes(GOOD)
    with pytest.raises(ValueError, match="no key in it"):
        TrustedKeys.choose(tmp_path / "leaf.pem")
