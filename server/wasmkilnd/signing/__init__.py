"""Keys and signatures: who may put native code into the cache that a daemon serves.

Redis is not trusted. Every artifact carries an attestation that one daemon signed, and a daemon
serves an artifact from Redis only if a key that it trusts signed it.

**Keys** are Ed25519. A daemon signs with one key and trusts several: its own, those in
``<keys>/trusted/``, and those that ``trusted_keys`` names. The signing key is the setting
``signing_key``, or ``<keys>/signing.pem``, which the first start makes. A key's id is the SHA-256
of its public half. Rotation replaces the signing key and keeps the old one trusted. The daemon
looks for an unknown key in the directory again, since another daemon may just have rotated.

**Revocation.** ``<keys>/revoked/`` says from when on a key's signatures count no more. An
attestation counts by the time that it states, and so does the stamp around it; a stamp on what
states no time (lease, strike, mark) counts as made now, and one on a module by the module's
digest, unless the key is revoked altogether. ``lifecycle.trust`` spreads revocations over Redis.

**A signature covers** two things. The attestation, a DSSE envelope around an in-toto statement
(``wasmkiln.attestation``, docs/reference/attestation.md), covers the digests of artifact and
module, the fingerprint, kind, engine, target, cpu, settings, times, and a digest over imports and
exports. A stamp covers the header of a value, a lease, a quarantine record or an eviction mark: the
key's id (32 bytes), then the signature (64 bytes). What is signed begins with the kind of value, so
that a stamp of one kind never passes for another.

| file | what it holds |
|---|---|
| ``private`` | the private key, which never shows itself |
| ``store`` | the key directory; refuses one that another user could change |
| ``files`` | how files of the directory are read; ``KeysUnusable`` |
| ``sealer`` | signs and verifies artifacts and stamps (ports ``Verifier`` and ``Sealer``) |
| ``certified`` | the keys that a CA vouches for |
| ``ring`` | the keys that are trusted at one moment, and the one to sign with |
| ``opening`` | opens the keys that settings name, and logs what changed |
| ``current`` | the sealer of a running daemon, which follows their reloads |

**Certificates.** With ``trusted_ca_file``, a key is trusted too while a certificate for code
signing by one of those CAs is known for it: from ``<keys>/trusted/``, or from Redis, where a daemon
publishes that of its own key (``signing_cert_file``) and others look when they meet the key.

Settings: ``keys_dir``, ``signing_key``, ``trusted_keys``, ``trusted_ca_file``,
``signing_cert_file``, ``value_max_age_s``; a reload applies all of them. To change
what an attestation states, give its statement a new ``BUILD_TYPE`` (``wasmkiln/_statement.py``):
daemons refuse statements of another type, and compile those artifacts again.
"""
