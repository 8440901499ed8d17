"""The bundled libraries of the web page are the ones that their list names."""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
LIBRARIES = ROOT / "src/rolecall/frontends/http/web/static/lib"
PINNED = re.compile(r"\d+\.\d+\.\d+")


def contents() -> Any:
    return json.loads((LIBRARIES / "contents.json").read_text(encoding="utf-8"))


def test_every_bundled_file_has_the_hash_that_the_list_names() -> None:
    present = {
        path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in LIBRARIES.iterdir() if path.suffix == ".js"
    }
    assert present == contents()["files"]


def test_every_bundled_package_has_a_hash_a_licence_and_the_version_of_the_lock() -> None:
    lock = json.loads((ROOT / "deploy/page/package-lock.json").read_text(encoding="utf-8"))["packages"]
    wanted = json.loads((ROOT / "deploy/page/package.json").read_text(encoding="utf-8"))
    licences = (LIBRARIES / "licences.txt").read_text(encoding="utf-8")
    locked = {place.rpartition("node_modules/")[2]: entry for place, entry in lock.items()}
    for name, package in contents()["packages"].items():
        entry = locked[name]
        assert (package["version"], package["integrity"]) == (entry["version"], entry["integrity"]), name
        assert package["integrity"].startswith("sha512-")
        assert f"{name} {package['version']} ({package['license']})" in licences
    for name, version in {**wanted["dependencies"], **wanted["devDependencies"]}.items():
        assert PINNED.fullmatch(version), name
    assert not [place for place, entry in lock.items() if "resolved" in entry]
