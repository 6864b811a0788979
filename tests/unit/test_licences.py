"""scripts/licences.py: what may be used is collected, and what nobody agreed to is refused."""

from __future__ import annotations

import pytest

from scripts.licences import Package, packages, permitted, refused, report


def test_everything_that_is_installed_has_a_licence_that_was_agreed_to() -> None:
    found = list(packages())
    assert [why for each in found if (why := refused(each))] == []
    assert {each.source for each in found} >= {"daemon", "engine wasmtime-50.0.1", "Node client"}
    assert {"grpcio", "wasmer", "@grpc/grpc-js"} <= {each.name for each in found}


@pytest.mark.parametrize(
    ("expression", "may"),
    [
        ("MIT", True),
        ("Apache-2.0 WITH LLVM-exception", True),
        ("Apache-2.0 AND BSD-2-Clause", True),
        ("GPL-3.0-only OR MIT", True),
        ("Apache-2.0 AND GPL-2.0-only", False),
        ("MIT WITH some-exception", False),
        ("LGPL-3.0-or-later", False),
        ("AGPL-3.0-only OR SSPL-1.0", False),
        ("Proprietary", False),
        ("", False),
    ],
)
def test_a_choice_has_to_be_permissive_in_all_its_parts(expression: str, may: bool) -> None:
    assert permitted(expression) is may


def test_a_refusal_says_what_to_do() -> None:
    assert "read it, then add it to STATED" in refused(Package("daemon", "x", "1", ""))
    assert "is not in PERMISSIVE" in refused(Package("daemon", "x", "1", "GPL-3.0-only"))
    # Copyleft for its own files is agreed to for one package that only builds, and one of traces.
    assert refused(Package("daemon", "pathspec", "1", "MPL-2.0")) == ""
    assert refused(Package("daemon", "certifi", "1", "MPL-2.0")) == ""
    assert refused(Package("daemon", "certifi", "1", "GPL-3.0-only"))
    assert refused(Package("daemon", "x", "1", "MPL-2.0"))


def test_the_report_has_the_texts() -> None:
    text = report([Package("daemon", "x", "1.2", "MIT", ("Permission is hereby granted",))])
    assert "| x | 1.2 | MIT | daemon |" in text
    assert "## x 1.2\n\n```text\nPermission is hereby granted\n```\n" in text
