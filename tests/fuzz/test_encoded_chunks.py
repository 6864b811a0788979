"""Whatever bytes come as an encoded artifact, what is made of them is the artifact or refused."""

from __future__ import annotations

import dataclasses
import hashlib

import pytest
from hypothesis import given
from hypothesis import strategies as st
from wasmkiln import ArtifactMismatch
from wasmkiln.assembly import Decoder
from wasmkilnd import model
from wasmkilnd.cache.value import ZSTD, ValueRejected

from tests.contract.values import artifact
from tests.doubles.shelf import decoded
from tests.fuzz.bytes_from_outside import changed
from tests.lying import honest
from tests.lying.encoded import in_pieces, packed

SIZE = len(honest.ARTIFACT)
SEEDS = [packed(), in_pieces(), packed(write_checksum=True), packed(write_content_size=False)]
KEPT = dataclasses.replace(
    artifact(),
    sha256=hashlib.sha256(honest.ARTIFACT).hexdigest(),
    size_bytes=SIZE,
    frames=(model.frame(packed()),),
    encoding=ZSTD,
)


@given(changed(SEEDS) | st.binary(max_size=400), st.integers(1, 500))
def test_a_client_makes_no_more_than_the_artifact_of_any_bytes(stream: bytes, cut: int) -> None:
    made = bytearray()

    def take(piece: bytes) -> None:
        made.extend(piece)
        if len(made) > SIZE:
            raise ArtifactMismatch("longer")

    decoder = Decoder("zstd", SIZE, take)
    try:
        for start in range(0, len(stream), cut):
            decoder.feed(stream[start : start + cut])
        decoder.finish()
    except ArtifactMismatch as refused:
        assert "\n" not in str(refused)
    assert len(made) <= SIZE + 512 * 1024


@given(st.lists(changed([packed()]) | st.binary(min_size=2, max_size=90), max_size=3))
def test_the_daemon_decodes_any_frames_to_the_artifacts_size_or_not_at_all(
    chunks: list[bytes],
) -> None:
    kept = dataclasses.replace(KEPT, frames=tuple(model.frame(chunk) for chunk in chunks))
    try:
        assert sum(map(len, model.payload_views(decoded(kept).frames))) == SIZE
    except ValueRejected as rejected:
        assert rejected.why
    assert model.payload_views(decoded(KEPT).frames) == [honest.ARTIFACT]
    with pytest.raises(ValueRejected):
        decoded(dataclasses.replace(KEPT, frames=(), encoding=ZSTD))
