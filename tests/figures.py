"""The size and shape of the code, as figures: ``python -m tests.figures [CHECKOUT]`` prints one line each.

A checkout of another version may be named, so that two can be compared. ``python -m tests.figures --turns`` runs one
turn through Telegram and one through HTTP and lists the files whose functions ran from the message to the answer: the
front end, the bus and the worker, and the duties a worker does meanwhile. It does so for this checkout only.
"""

from __future__ import annotations

import ast
import asyncio
import re
import shutil
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

RAW = re.compile(r"\.(?:call|fetch|send|run)\(\s*\"[A-Za-z_]+\"")
INDEX = re.compile(r"\b(?:ARGV|KEYS)\[")


def python_files(package: Path) -> list[Path]:
    """The framework's Python files, without the application template."""
    return sorted(path for path in package.rglob("*.py") if "template" not in path.relative_to(package).parts)


def imports(path: Path, package: Path, modules: set[str]) -> Iterator[str]:
    """The modules that ``path`` imports when it is imported."""
    waiting: list[ast.AST] = list(ast.parse(path.read_text(encoding="utf-8")).body)
    while waiting:
        node = waiting.pop()
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test):
            continue
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "rolecall":
            for alias in node.names:
                full = f"{node.module}.{alias.name}"
                yield full if full in modules else node.module or ""
        elif not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            waiting += ast.iter_child_nodes(node)


def circles(graph: dict[str, set[str]]) -> int:
    """How many groups of nodes reach each other."""

    def reach(start: str) -> set[str]:
        seen: set[str] = set()
        waiting = [start]
        while waiting:
            for other in graph.get(waiting.pop(), ()):
                if other not in seen:
                    seen.add(other)
                    waiting.append(other)
        return seen

    reached = {node: reach(node) for node in graph}
    groups = {frozenset(o for o in reached[n] if n in reached.get(o, ())) for n in graph if n in reached[n]}
    return len(groups)


def package_of(module: str) -> str:
    """The package below rolecall that ``module`` is in; a file on the roof stands for itself."""
    return module.split(".")[1] if "." in module else ""


def doubles(names: Iterable[str]) -> int:
    return sum(count > 1 for count in Counter(names).values())


def figures(checkout: Path) -> dict[str, int | str]:
    package = checkout / "src/rolecall"
    files = python_files(package)
    texts = {path: path.read_text(encoding="utf-8") for path in files}
    lines = {path: len(text.splitlines()) for path, text in texts.items()}
    name = {
        path: ".".join(("rolecall", *path.relative_to(package).with_suffix("").parts)).removesuffix(".__init__")
        for path in files
    }
    modules = set(name.values())
    graph = {name[path]: set(imports(path, package, modules)) - {name[path]} for path in files}
    packages: dict[str, set[str]] = {}
    for module, others in graph.items():
        own = package_of(module)
        packages.setdefault(own, set()).update({package_of(other) for other in others} - {own})
    packages.pop("", None)
    lua = [path.read_text(encoding="utf-8") for path in package.rglob("*.lua")]
    classes = [
        node.name
        for text in texts.values()
        for node in ast.parse(text).body
        if isinstance(node, ast.ClassDef) and not node.name.startswith("_")
    ]
    owners = [path for path in files if path.relative_to(package).parts[0] not in ("redis", "bus", "wire.py", "bus.py")]
    init = ast.parse(texts[package / "__init__.py"])
    public = [
        len(node.value.elts)
        for node in init.body
        if isinstance(node, ast.Assign)
        and ast.unparse(node.targets[0]) == "__all__"
        and isinstance(node.value, ast.List)
    ]
    return {
        "Python files": len(files),
        "Python lines": sum(lines.values()),
        "Lua files": len(lua),
        "files on the roof": sum(path.parent == package for path in files),
        "files under 60 lines": sum(n < 60 and p.name != "__init__.py" for p, n in lines.items()),
        "largest file, lines": max(lines.values()),
        "circles between files": circles(graph),
        "circles between packages": circles(packages),
        "numeric indices in scripts": sum(len(INDEX.findall(text)) for text in lua),
        "module names used twice": doubles(path.stem for path in files if path.name != "__init__.py"),
        "public class names used twice": doubles(classes),
        "files of front ends that send raw commands": sum(
            bool(RAW.search(texts[path])) for path in owners if "frontends" in path.parts
        ),
        "files that send raw commands, outside redis and bus": sum(bool(RAW.search(texts[path])) for path in owners),
        "public names": public[0] if public else "?",
    }


@contextmanager
def files_that_run(found: set[str]) -> Iterator[None]:
    """Put into ``found`` each of the package's files of which a function is called meanwhile, in this thread."""
    package = f"{Path(__file__).resolve().parents[1] / 'src/rolecall'}/"

    def note(frame: FrameType, event: str, arg: object) -> None:
        if event == "call" and frame.f_code.co_filename.startswith(package):
            found.add(frame.f_code.co_filename.removeprefix(package))

    sys.setprofile(note)
    try:
        yield
    finally:
        sys.setprofile(None)


async def telegram_turn(directory: Path) -> set[str]:
    """The files of one turn: a message to the bot, through the manager and a model, until the answer stands."""
    from agents.manager import ManagerAgent
    from agents.samplellm import SampleLLMAgent
    from rolecall import Role
    from rolecall.frontends.telegram.bot import open_bot
    from rolecall.frontends.telegram.telegram_front import TelegramFront
    from tests.deployment import deployed
    from tests.telegram.api import TelegramApi

    roles = (Role(ManagerAgent), Role(SampleLLMAgent, models=("echo@test",)))
    found: set[str] = set()
    async with TelegramApi() as api:
        settings: dict[str, Any] = {
            "telegram_allowed": "*",
            "telegram_bot_token": api.token,
            "telegram_api_url": api.url,
        }
        async with deployed(directory, roles, **settings) as app:
            bot = open_bot(app.session.application.settings)
            front = TelegramFront(bot, app.session, app.runtime.wakeups, lambda line: None)
            running = asyncio.create_task(front.run())

            def answered(text: str) -> Callable[[], bool]:
                return lambda: any(text in message.text for message in api.chat(11).answers)

            api.user(11).write("warm up")
            await api.wait_for(answered("warm up"))
            with files_that_run(found):
                api.user(11).write("hello")
                await api.wait_for(answered("hello"))
            running.cancel()
            await asyncio.gather(running, return_exceptions=True)
    return found


async def http_turn(directory: Path) -> set[str]:
    """The files of one turn: a POST that waits for its answer, through the manager and a model."""
    import httpx2

    from agents.manager import ManagerAgent
    from agents.samplellm import SampleLLMAgent
    from rolecall import Role
    from tests.deployment import deployed
    from tests.http.server import serving

    roles = (Role(ManagerAgent), Role(SampleLLMAgent, models=("echo@test",)))
    found: set[str] = set()
    async with (
        deployed(directory, roles) as app,
        serving(app.session.application) as url,
        httpx2.AsyncClient(base_url=url, timeout=20) as client,
    ):
        await client.post("/chat", json={"text": "warm up"})
        with files_that_run(found):
            answer = await client.post("/chat", json={"text": "hello"})
            answer.raise_for_status()
    return found


def print_turns() -> None:
    for name, turn in (("Telegram", telegram_turn), ("HTTP", http_turn)):
        with tempfile.TemporaryDirectory() as directory:
            shutil.copytree("agents/prompts", f"{directory}/agents/prompts")
            found = asyncio.run(turn(Path(directory)))
        print(f"{len(found):>8}  files of one {name} turn")
        for file in sorted(found):
            print(f"{'':10}{file}")


def main() -> None:
    if "--turns" in sys.argv:
        return print_turns()
    checkout = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).resolve().parents[1]
    for what, value in figures(checkout).items():
        print(f"{value:>8}  {what}")


if __name__ == "__main__":
    main()
