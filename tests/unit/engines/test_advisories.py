"""Known vulnerabilities: the form of the table, which engines a row concerns, broken files."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Any, cast

import pytest
from packaging.version import Version
from wasmkilnd.engines.advisories import BUILT_IN, Advisories, Advisory, read_advisories
from wasmkilnd.engines.registry import ServedEngine
from wasmkilnd.files.operator_files import CannotUse
from wasmkilnd.model import EngineCapabilities, EngineIdentity, Kind, SettingInfo, TargetInfo

ROOT = Path(__file__).resolve().parents[3]
X86_64, AARCH64 = "x86_64-unknown-linux-gnu", "aarch64-unknown-linux-gnu"
ROW = """[[advisory]]
id = "TEST-1"
summary = "A guest can leave"
engine = "wasmtime"
affected = ["== 50.0.1"]
fixed_in = ["50.0.2"]
url = "https://example.org/TEST-1"
"""


def engine(version: str, *targets: str, name: str = "wasmtime", winch: bool = True) -> ServedEngine:
    """An engine without workers."""
    strategies = ["cranelift", "winch"] if winch else ["cranelift"]
    capabilities = EngineCapabilities(
        identity=EngineIdentity(name, version, version, "cranelift"),
        interpreter="CPython 3.13",
        host_triple=X86_64,
        host_cpu_features=(),
        targets=[TargetInfo(each, ["baseline"], each == X86_64) for each in targets or (X86_64,)],
        settings=[SettingInfo("strategy", "cranelift", strategies, "the compiler")],
        wasm_features=(),
        kinds=frozenset(Kind),
    )
    return ServedEngine(capabilities, cast(Any, None))


def ids(table: Advisories, concerned: ServedEngine) -> set[str]:
    return {row.id for row in table.rows if row.concerns(concerned)}


@pytest.fixture
def built_in() -> Advisories:
    return read_advisories("", refuse=False)


def write(folder: Path, content: str | bytes) -> str:
    file = folder / "advisories.toml"
    file.write_bytes(content if isinstance(content, bytes) else content.encode())
    return str(file)


def test_each_built_in_row_has_its_source_and_agrees_with_itself(built_in: Advisories) -> None:
    blocks = BUILT_IN.read_text().split("\n\n")
    rows = {row.id: row for row in built_in.rows}
    assert len(rows) == len(built_in.rows)
    with_rows = [block for block in blocks if "[[advisory]]" in block]
    assert len(with_rows) == len(rows)
    for block in with_rows:
        [found] = re.findall(
            r"^# Source: https://github\.com/(\S+)/(\S+)\.(?:md|json)$", block, re.MULTILINE
        )
        database, row_id = found
        row = rows[row_id]
        if row_id.startswith("RUSTSEC-"):
            assert database == "rustsec/advisory-db/blob/main/crates/wasmtime"
            assert row.url == f"https://rustsec.org/advisories/{row_id}.html"
        else:
            assert database.startswith("CVEProject/cvelistV5/blob/main/cves/")
            assert "/security/advisories/GHSA-" in row.url
        # Each range ends with a release that has the fix, and no such release is in a range.
        assert [
            limit for each in row.affected for limit in re.findall(r"<([\d.]+)", str(each))
        ] == [*row.fixed_in]
        assert not any(each.contains(fixed) for each in row.affected for fixed in row.fixed_in)
        assert sorted(row.fixed_in, key=Version) == [*row.fixed_in]


def test_a_row_concerns_releases_compilers_and_targets(built_in: Advisories) -> None:
    winch, cranelift = "RUSTSEC-2026-0095", "RUSTSEC-2026-0096"

    def concerned(row: str, *targets: str, **options: Any) -> list[str]:
        releases = ("24.0.0", "32.0.0", "36.0.6", "36.0.7", "42.0.1", "42.0.2", "43.0.0", "43.0.1")
        return [
            each for each in releases if row in ids(built_in, engine(each, *targets, **options))
        ]

    assert concerned(winch) == ["32.0.0", "36.0.6", "42.0.1", "43.0.0"]
    assert concerned(cranelift, X86_64, AARCH64, winch=False) == concerned(winch)
    assert not concerned(winch, winch=False)
    assert not concerned(winch, name="wasmer")
    assert not concerned(cranelift, X86_64)


def test_the_example_of_the_page_can_be_used(tmp_path: Path) -> None:
    page = (ROOT / "docs/how-to/engines.md").read_text()
    [example] = re.findall(r"```toml\n(\[\[advisory]].*?)```", page, re.DOTALL)
    table = read_advisories(write(tmp_path, example), refuse=False)
    [fields] = tomllib.loads(example)["advisory"]
    assert fields.keys() == Advisory.model_fields.keys()
    assert table.rows[-1].text.startswith(f"{fields['id']}: ")


@pytest.mark.parametrize(
    ("content", "why"),
    [
        ("", "advisory: Field required"),
        ("[[advisory]", "not valid TOML: "),
        (b"\xff", "'utf-8' codec can't decode byte"),
        (ROW + "severity = 9", "advisory 1 severity: the daemon knows no such key"),
        (ROW + ROW.replace("50.0.1", ""), "advisory 2 affected 1: Invalid specifier"),
        (ROW.replace('"== 50.0.1"', '" "'), "advisory 1 affected 1: expected releases"),
        (ROW + 'compilers = ["winhc"]', "advisory 1 compilers 1: it should be 'cranelift', "),
        (ROW.replace("https:", "javascript:"), "advisory 1 url: it should match pattern"),
        (ROW.replace("can leave", "can\\nleave"), "advisory 1 summary: it should match"),
    ],
)
def test_a_file_that_cannot_be_used_says_why_in_one_sentence(
    tmp_path: Path, content: str | bytes, why: str
) -> None:
    file = write(tmp_path, content)
    with pytest.raises(CannotUse, match="cannot use advisories_file") as refused:
        read_advisories(file, refuse=False)
    assert str(refused.value).startswith(f"cannot use advisories_file {file}: {why}")
    assert "\n" not in str(refused.value)


def test_a_file_that_is_not_there_or_that_others_may_write_to_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CannotUse, match="none: there is no such file"):
        read_advisories(str(tmp_path / "none"), refuse=False)
    file = write(tmp_path, ROW)
    Path(file).chmod(0o666)
    with pytest.raises(CannotUse, match=r"other users may write .* \(advisories_file\)"):
        read_advisories(file, refuse=False)
