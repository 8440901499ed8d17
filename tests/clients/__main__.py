"""Tries real clients on a real server, each in an environment of its own, and writes the table of docs/clients.md.

    python -m tests.clients [--keep] [client …]

``--keep`` uses the environments as they are; otherwise the newest releases are installed. They are in
``~/.cache/rolecall/clients`` or ROLECALL_CLIENTS.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

from tests.clients.server import run, served

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs/clients.md"
SCRIPTS = Path(__file__).with_name("scripts")
CACHE = Path(os.environ.get("ROLECALL_CLIENTS") or Path.home() / ".cache/rolecall/clients")
HEAD = """# Clients

Each row is a client in its newest release, unchanged but for the base URL, on a real server with a provider of tools,
JSON and text behind it. `make test-clients` installs them, tries every feature, and writes this page; `make test` tries
OpenAI's own client for Python.

"""


@dataclass(frozen=True)
class Client:
    """A client: the ``packages`` that it needs, and the ``script`` that uses it."""

    title: str
    script: str
    packages: tuple[str, ...] = ()
    node: bool = False


CLIENTS = {
    "openai-python": Client("openai (Python)", "use_openai.py", ("openai",)),
    "openai-node": Client("openai (Node)", "use_openai.mjs", ("openai", "zod"), node=True),
    "langchain": Client("LangChain", "use_langchain.py", ("langchain", "langchain-openai", "langchain-ollama")),
    "llama-index": Client(
        "LlamaIndex", "use_llama_index.py",
        ("llama-index-core", "llama-index-llms-openai-like", "llama-index-embeddings-openai-like"),
    ),
    "litellm": Client("LiteLLM", "use_litellm.py", ("litellm",)),
    "pydantic-ai": Client("pydantic-ai", "use_pydantic_ai.py", ("pydantic-ai-slim[openai]",)),
    "openai-agents": Client("OpenAI Agents SDK", "use_openai_agents.py", ("openai-agents",)),
    "instructor": Client("instructor", "use_instructor.py", ("instructor",)),
    "ai-sdk": Client(
        "Vercel AI SDK", "use_ai_sdk.mjs", ("ai", "@ai-sdk/openai", "@ai-sdk/openai-compatible", "zod"), node=True
    ),
    "llm": Client("llm", "use_llm.py", ("llm",)),
    "open-webui": Client("Open WebUI's requests", "use_open_webui.py"),
    "generated": Client(
        "generated from /openapi.json (Python)", "use_generated.py",
        ("openapi-python-client", "openapi-spec-validator", "ruff"),
    ),
    "generated-typescript": Client(  # generators work with TypeScript's JavaScript API, which version 7 has not
        "generated from /openapi.json (TypeScript)", "use_generated.mjs",
        ("@hey-api/openapi-ts", "typescript@6", "esbuild"), node=True,
    ),
}  # fmt: skip


@dataclass
class Outcome:
    """What became of a client: its versions, and each feature with the reason why it does not work."""

    versions: list[str] = field(default_factory=list)
    features: dict[str, str] = field(default_factory=dict)
    failure: str = ""

    @property
    def works(self) -> bool:
        """Whether all of it does."""
        return bool(self.features) and not self.failure and not any(self.features.values())


def main() -> int:
    """Try the clients that are named, or all of them."""
    parser = argparse.ArgumentParser(prog="python -m tests.clients")
    parser.add_argument("clients", nargs="*", choices=[[], *CLIENTS], metavar="client")
    parser.add_argument("--keep", action="store_true", help="use the environments as they are")
    given = parser.parse_args()
    names = given.clients or list(CLIENTS)
    outcomes = asyncio.run(tried(names, given.keep))
    if not given.clients:
        PAGE.write_text(HEAD + table(outcomes), encoding="utf-8")
    sys.stdout.write(table(outcomes))
    return 0 if all(outcome.works for outcome in outcomes.values()) else 1


async def tried(names: list[str], keep: bool) -> dict[str, Outcome]:
    """What became of each client."""
    outcomes = {}
    with tempfile.TemporaryDirectory(prefix="rolecall-clients-") as scratch:
        async with served(Path(scratch) / "app") as url:
            for name in names:
                directory = Path(scratch) / name
                directory.mkdir()
                outcomes[name] = await attempt(CLIENTS[name], CACHE / name, url, directory, keep)
                sys.stderr.write(f"{name}: {'works' if outcomes[name].works else 'does not work'}\n")
    return outcomes


async def attempt(client: Client, environment: Path, url: str, directory: Path, keep: bool) -> Outcome:
    """Install one client unless it is to be kept as it is, and run its script."""
    try:
        if client.packages and not (keep and environment.exists()):
            await asyncio.to_thread(install, client, environment)
        versions = await asyncio.to_thread(versions_of, client, environment)
    except (subprocess.CalledProcessError, OSError) as error:
        return Outcome(failure=f"could not be installed: {error}")
    if client.node:
        for path in ("report.mjs", client.script):
            shutil.copy(SCRIPTS / path, environment / path)
        command = ["node", str(environment / client.script)]
    else:
        python = environment / "bin/python" if client.packages else Path(sys.executable)
        command = [str(python), str(SCRIPTS / client.script)]
    status, said = await run(command, url, directory)
    found = [json.loads(line) for line in said.splitlines() if line.startswith('{"feature"')]
    features = {one["feature"]: "" if one["works"] else one["note"] or "failed" for one in found}
    return Outcome(versions, features, said.strip()[-300:] if status or not features else "")


def install(client: Client, environment: Path) -> None:
    """Put the newest releases into an environment of their own. Raises CalledProcessError."""
    environment.mkdir(parents=True, exist_ok=True)
    if client.node:
        (environment / "package.json").write_text('{"private": true, "type": "module"}')
        newest = [package if "@" in package[1:] else f"{package}@latest" for package in client.packages]
        command = ["npm", "install", "--silent", *newest]
        subprocess.run(command, cwd=environment, check=True)
        return
    subprocess.run([sys.executable, "-m", "venv", str(environment)], check=True)
    pip = [str(environment / "bin/python"), "-m", "pip", "install", "--quiet", "--upgrade"]
    subprocess.run([*pip, *client.packages], check=True)


def versions_of(client: Client, environment: Path) -> list[str]:
    """The versions of the packages, in their order."""
    plain = plain_names(client)
    if client.node:
        files = [environment / "node_modules" / package / "package.json" for package in plain]
        return [json.loads(file.read_text())["version"] for file in files]
    if not plain:
        return []
    code = f"from importlib.metadata import version; print(*map(version, {plain!r}))"
    found = subprocess.run([str(environment / "bin/python"), "-c", code], check=True, capture_output=True, text=True)
    return found.stdout.split()


def plain_names(client: Client) -> list[str]:
    """The packages without extras and versions."""
    return [package[0] + package[1:].partition("[")[0].partition("@")[0] for package in client.packages]


def table(outcomes: dict[str, Outcome]) -> str:
    """The table, and what does not work."""
    lines = ["| client | version | works | does not work |", "|---|---|---|---|"]
    for name, outcome in outcomes.items():
        client = CLIENTS[name]
        plain = plain_names(client)
        versions = " · ".join(f"{p} {v}" for p, v in zip(plain, outcome.versions, strict=False) if p != "zod") or "-"
        works = ", ".join(feature for feature, why in outcome.features.items() if not why) or "-"
        broken = [f"{feature} ({_cell(why)})" for feature, why in outcome.features.items() if why]
        broken += [_cell(outcome.failure)] if outcome.failure else []
        lines.append(f"| {client.title} | {versions} | {works} | {'; '.join(broken) or '-'} |")
    when = datetime.now(UTC).date().isoformat()
    return "\n".join([*lines, "", f"Measured on {when} by `make test-clients`.", ""])


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")[:200]


if __name__ == "__main__":
    raise SystemExit(main())
