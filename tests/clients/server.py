"""The server that the clients are tried on: a real application, its HTTP server, and a provider behind it."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from agents import samplellm
from agents.embedding import EmbeddingAgent
from agents.lang import LangAgent
from agents.manager import ManagerAgent
from agents.samplellm import SampleLLMAgent
from agents.voice import VoiceAgent
from rolecall.agent.role import Role
from tests.clients.upstream import ClientsUpstream
from tests.deployment import deployed
from tests.http.server import serving
from tests.http.upstream import provider

ROLES = (
    Role(ManagerAgent), Role(LangAgent), Role(SampleLLMAgent, instances=4, models=("mirror@openai",)),
    Role(EmbeddingAgent), Role(VoiceAgent),
)  # fmt: skip


@asynccontextmanager
async def served(directory: Path) -> AsyncIterator[str]:
    """The address of the server, of an application in ``directory``."""
    shutil.copytree(Path(samplellm.__file__).parent / "prompts", directory / "agents" / "prompts")
    async with provider(ClientsUpstream()) as upstream:
        options: dict[str, Any] = {"embedding_model": "words@test", "voice_model": "whisper@test"}
        async with (
            deployed(
                directory, ROLES, openai_base_url=upstream.url, http_requests_per_minute=100_000, **options
            ) as running,
            serving(running.session.application) as url,
        ):
            yield url


async def run(command: list[str], url: str, directory: Path) -> tuple[int, str]:
    """Run a client's script against the server; what it printed, and its exit status."""
    variables = {"ROLECALL_URL": url, "HOME": str(directory), "PATH": "/usr/local/bin:/usr/bin:/bin", "LANG": "C.UTF-8"}
    process = await asyncio.create_subprocess_exec(
        *command, cwd=directory, env=variables, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT
    )
    try:
        async with asyncio.timeout(300):
            said = (await process.communicate())[0].decode("utf-8", "replace")
    except TimeoutError:
        process.kill()
        said = (await process.communicate())[0].decode("utf-8", "replace")
    return process.returncode or 0, said
