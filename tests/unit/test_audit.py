"""deploy/audit.py: which licences pass, and that an audit that asked nobody does not count as one."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest


@pytest.fixture
def audit(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2] / "deploy"))
    import audit  # type: ignore[import-not-found]

    module: ModuleType = audit
    return module


def test_every_licence_of_what_is_installed_is_allowed(audit: ModuleType) -> None:
    assert len(audit.needed()) > 50
    assert list(audit.refused()) == []
    assert set(audit.EXCEPTIONS) <= audit.needed()


@pytest.mark.parametrize(
    ("told", "allowed"),
    [("MIT", True), ("Apache-2.0 AND MIT", True), ("GPL-3.0-only", False), ("GPL-2.0 AND MIT", False),
     ("GPL-2.0 OR MIT", True), ("", False), ("Proprietary", False), ("AGPL-3.0", False)],
)  # fmt: skip
def test_a_licence_that_asks_for_more_is_refused(
    audit: ModuleType, monkeypatch: pytest.MonkeyPatch, told: str, allowed: bool
) -> None:
    monkeypatch.setattr(audit, "needed", lambda: {"some"})
    monkeypatch.setattr(audit, "licence", lambda name: told)
    assert list(audit.refused()) == ([] if allowed else [f"some: licence {told or 'unknown'!r} is not among those "
                                                         "allowed in deploy/audit.py"])  # fmt: skip


@pytest.mark.parametrize(
    ("said", "status", "shown"),
    [
        ([{"name": "a", "version": "1", "vulns": []}], 0, "1 packages, no known vulnerability"),
        ([{"name": "a", "version": "1", "vulns": [{"id": "X-1", "fix_versions": ["2"]}]}], 1, "a 1: X-1, fixed in 2"),
        ([{"name": "a", "skip_reason": "not found"}], 2, "nothing was audited: the package index has no advisories"),
        (None, 2, "nothing was audited: ConnectionError: no network"),
    ],
)  # fmt: skip
def test_an_audit_that_asked_nobody_is_no_audit(
    audit: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
    said: list[object] | None, status: int, shown: str,
) -> None:  # fmt: skip
    out, err = ("", "ConnectionError: no network") if said is None else (json.dumps({"dependencies": said}), "")
    monkeypatch.setattr(audit.subprocess, "run", lambda *_, **__: SimpleNamespace(stdout=out, stderr=err))
    monkeypatch.setattr(sys, "argv", ["audit.py", "advisories"])
    assert audit.main() == status
    told = capsys.readouterr()
    assert shown in told.out + told.err
    assert len((told.out + told.err).splitlines()) == 1
