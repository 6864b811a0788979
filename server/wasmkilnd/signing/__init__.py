"""Keys and signatures: who may put native code into the cache that a daemon serves.

Redis is not trusted. Every artifact carries an attestation that one daemon signed, and a daemon
serves an artifact from Redis only if a key that it trusts signed it: a key in its set, less those
that are revoked. What a key signed that is taken out of the set, or revoked, is refused after the
next reload, in all tiers.

| file | what it holds |
|---|---|
| ``keys`` | the key directory, the private key, rotation, and the keys that settings name |
| ``sealer`` | signs and verifies artifacts and stamps |

Settings: ``keys_dir``, ``signing_key``, ``trusted_keys``, ``value_max_age_s``; a reload applies
all of them.
"""
