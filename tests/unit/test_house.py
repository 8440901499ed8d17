"""The house is in order: short functions, small files, scripts that say what they do."""

from __future__ import annotations

import ast
import re
from pathlib import Path
from statistics import quantiles

import pytest

ROOT = Path(__file__).resolve().parents[2]
SOURCES = sorted([*(ROOT / "src").rglob("*.py"), *(ROOT / "agents").rglob("*.py"), ROOT / "config.py"])
LUA = sorted((ROOT / "src/rolecall").rglob("*.lua"))
SCRIPTS = [path for path in LUA if path.parent.name != "lib"]
Function = ast.FunctionDef | ast.AsyncFunctionDef


def functions(path: Path) -> list[tuple[str, int]]:
    """Every function with its lines, its docstring and decorators left out."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    return [(node.name, _lines(node)) for node in ast.walk(tree) if isinstance(node, Function)]


def _lines(node: Function) -> int:
    documented = ast.get_docstring(node, clean=False) is not None and len(node.body) > 1
    first = node.body[1] if documented else node.body[0]
    head = first.lineno - node.lineno if not documented else 1
    return (node.end_lineno or first.lineno) - first.lineno + 1 + head


def test_no_function_is_longer_than_fifty_lines() -> None:
    long = {f"{p.relative_to(ROOT)}:{name}": n for p in SOURCES for name, n in functions(p) if n > 50}
    assert not long


def test_nine_of_ten_functions_have_at_most_twenty_five_lines() -> None:
    assert quantiles((n for path in SOURCES for _, n in functions(path)), n=10)[-1] <= 25


def test_no_file_is_longer_than_five_hundred_lines() -> None:
    sizes = {str(p.relative_to(ROOT)): len(p.read_text(encoding="utf-8").splitlines()) for p in SOURCES}
    assert not {name: size for name, size in sizes.items() if size > 500}


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.stem)
def test_a_script_says_what_it_does_what_it_takes_and_what_it_returns(path: Path) -> None:
    lines = path.read_text(encoding="utf-8").splitlines()
    header = [line for line in lines[: next(n for n, line in enumerate(lines) if not line.startswith("--"))]]
    assert re.match(r"-- [A-Z].*\.|-- [A-Z]", header[0])
    text = "\n".join(header)
    for word in ("KEYS", "ARGV", "Returns"):
        assert word in text, f"the header does not say {word}"


def test_scripts_use_the_time_of_the_server_alone_and_never_look_for_keys() -> None:
    for path in LUA:
        text = path.read_text(encoding="utf-8")
        assert not re.search(r"os\.(time|clock)|math\.random|'(KEYS|SCAN|EVAL|FLUSH\w*)'", text), path.name
