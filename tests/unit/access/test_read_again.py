"""What a reload takes over of who may do what."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from wasmkilnd.access.guard import AccessGuard, read_access
from wasmkilnd.errors import CannotUse
from wasmkilnd.lifecycle.reload import prepare_access
from wasmkilnd.settings import Settings
from wasmkilnd.telemetry.audit import Audit

RULE = '[[rule]]\nidentity = ["token:{0}"]\nroles = ["read"]\nnamespace = "{0}"\n'


def test_a_policy_with_too_many_namespaces_counts_and_those_that_are_served_stay(
    tmp_path: Path,
) -> None:
    file = tmp_path / "policy.toml"
    settings = Settings(state_dir=tmp_path, policy_file=str(file))
    file.write_text(RULE.format("one"))
    guard, served = AccessGuard(read_access(settings)[0]), list[Any]()
    tenants: Any = SimpleNamespace(serve=lambda *what: served.append(what))
    auditor = Audit()
    file.write_text("".join(RULE.format(f"n{number}") for number in range(300)))
    apply = prepare_access(guard, tenants, auditor, settings)
    with pytest.raises(CannotUse, match="300 namespaces"):
        apply()
    assert "n7" in guard.access.policy.namespaces
    assert not served
    file.write_text(RULE.format("two"))
    prepare_access(guard, tenants, auditor, settings)()
    assert served == [(guard.access.policy.namespaces, settings)]
