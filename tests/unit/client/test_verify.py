"""`wasmkiln verify`: what it vouches for, refuses, and says that it did not check."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

from click.testing import CliRunner
from wasmkiln.cli.app import app

from tests.attesting import WASM, Attester, attested
from tests.lying import lies

OURS, THEIRS = Attester(), Attester()
make = partial(attested, by=OURS)


def test_verify_command(tmp_path: Path) -> None:
    path = str(make().save(tmp_path / "m.cwasm"))
    (tmp_path / "m.wasm").write_bytes(WASM)

    def run(*arguments: str) -> Any:
        return CliRunner().invoke(app, ["verify", path, *arguments])

    key = ("--key", OURS.key.hex)
    done = run(*key, "--module", str(tmp_path / "m.wasm"), "--fingerprint", "F" * 64)
    assert done.exit_code == 0, done.output
    assert OURS.key.id in done.stdout
    assert done.stderr == ""
    answer = json.loads(run(*key, "--json").stdout)
    assert answer["verified"] is True
    assert answer["not_checked"] == ["module", "fingerprint"]
    for given, told in (
        ((), ["give --module", "give --fingerprint"]),
        (("--fingerprint", "f" * 64), ["give --module"]),
        (("--module", str(tmp_path / "m.wasm")), ["give --fingerprint"]),
    ):
        lines = run(*key, *given).stderr.splitlines()
        assert [line.split(": ")[-1] for line in lines] == told
        assert all(line.startswith("not checked: whether it is ") for line in lines)
    assert answer["key_id"] == OURS.key.id
    assert answer["engine"]["name"] == "nothing"
    for wrong in (
        ("--key", THEIRS.key.hex),
        (*key, "--module", "0" * 64),
        (*key, "--fingerprint", "0" * 64),
        (*key, "--attestation", path),
    ):
        refused = run(*wrong, "--json")
        assert refused.exit_code == 1
        assert refused.stdout == ""
        assert json.loads(refused.stderr.splitlines()[1])["error"]["reason"] == (
            "ATTESTATION_INVALID"
        )
    assert run().exit_code == 2
    assert run("--key", "nonsense").exit_code == 2
    Path(path).write_bytes(b"evil")
    assert run(*key).exit_code == 1


def test_verify_shows_no_control_character_of_what_was_signed(tmp_path: Path) -> None:
    artifact = make(by=None)
    header = artifact.header
    for field in ("module_sha256", "fingerprint", "target", "cpu"):
        setattr(header, field, lies.EVIL)
    header.engine.name = header.engine.version = lies.EVIL
    header.settings[lies.EVIL] = lies.EVIL
    OURS.attest(header)
    path = artifact.save(tmp_path / "m.cwasm")
    for form in ((), ("--json",)):
        done = CliRunner().invoke(app, ["verify", str(path), "--key", OURS.key.hex, *form])
        assert done.exit_code == 0, done.output
        assert all(line.isprintable() for line in done.output.splitlines())
    refused = CliRunner().invoke(
        app, ["verify", str(path), "--key", OURS.key.hex, "--fingerprint", "f"]
    )
    assert refused.exit_code == 1
    assert refused.stderr.count("\n") == 1


def test_verify_tells_what_was_left_out(tmp_path: Path) -> None:
    path = make().save(tmp_path / "m.cwasm")
    runner = CliRunner()
    (tmp_path / "m.cwasm.dsse.json").unlink()
    alone = runner.invoke(app, ["verify", str(path), "--key", OURS.key.hex])
    assert alone.exit_code == 2
    assert "give the attestation with --attestation" in alone.stderr
