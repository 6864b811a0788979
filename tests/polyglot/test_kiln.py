"""The daemons of the polyglot tests are what the languages' tests take them for."""

from __future__ import annotations

import hashlib

import pytest
from wasmkiln import (
    TLS,
    AttestationInvalid,
    Client,
    CompileQueueFull,
    CredentialsMissing,
    ModuleInvalid,
    ModuleNotLoaded,
)
from wasmkiln.v1 import types_pb2

from tests.polyglot.kiln import ENGINES, Kiln, Secure


def test_it_compiles_signs_and_hits_with_each_engine(kiln: Kiln) -> None:
    with Client(kiln.address, trusted_keys=kiln.key_file.read_text()) as client:
        for engine in ENGINES:
            artifact = client.compile(kiln.module, engine=engine)
            again = client.compile(kiln.module, engine=engine)
            assert artifact.bytes == again.bytes
            assert again.header.origin == types_pb2.ORIGIN_MEMORY
            print(f"python compiled with {engine}, {len(again.bytes)} bytes, from memory")


def test_it_refuses_as_the_languages_show(kiln: Kiln) -> None:
    with Client(kiln.address, max_attempts=1) as client:
        with pytest.raises(ModuleInvalid):
            client.compile(kiln.invalid_module)
        with pytest.raises(ModuleNotLoaded):
            client.compile(hashlib.sha256(b"nobody has this").hexdigest())
        with kiln.full_queue() as engine, pytest.raises(CompileQueueFull) as full:
            client.compile(kiln.fresh_module(), engine=engine)
        assert full.value.retry_after_s
    with (
        Client(kiln.address, trusted_keys=kiln.wrong_key_file.read_text()) as client,
        pytest.raises(AttestationInvalid),
    ):
        client.compile(kiln.module)


def test_the_secure_one_asks_for_tls_and_a_token(secure: Secure) -> None:
    tls = TLS(secure.ca_file)
    with Client(secure.address, tls=tls, token_file=secure.token_file) as client:
        assert client.capabilities().caller.identity == "token:ci"
    with Client(secure.address, tls=tls) as client, pytest.raises(CredentialsMissing):
        client.capabilities()
