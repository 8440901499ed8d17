"""Whether the models answer."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from pathlib import Path

from rolecall.bus.process.processes import process_name
from rolecall.cli.checks.finding import Finding, judged
from rolecall.cli.checks.server_checks import reached
from rolecall.config import Application
from rolecall.errors import ConfigError, ModelError, ModelUnauthorised, NoSuchModel, RateLimited, RolecallError
from rolecall.models.model import Model
from rolecall.models.providers.remote import unbalanced
from rolecall.models.registry import probe
from rolecall.serving.launcher import Launcher
from rolecall.serving.weights import CATALOGUE, default_cache


async def look_at_models(application: Application) -> list[Finding]:
    """One finding per model, each asked for one word; and the roles that have none to ask."""
    names = application.model_names
    async with _served(application, names) as serving:
        found = list(await asyncio.gather(*(_look_at(application, name, serving) for name in names)))
    if not names:
        remedy = "`rolecall setup` connects one; or name one in config.py, models=(…,), or set GEN_MODEL"
        found.append(Finding("not set up", "models", "no role has one", remedy))
    return found


@asynccontextmanager
async def _served(application: Application, names: list[str]) -> AsyncIterator[Launcher | None]:
    """What serves the models of this machine, where there are some and a server to serve them by."""
    async with AsyncExitStack() as stack:
        serving = None
        local = any(name.endswith("@local") for name in names) and not application.settings.local_url
        if local or any(name in application.commands for name in names):
            with suppress(RolecallError):
                server, _ = await stack.enter_async_context(reached(application))
                await server.check()
                logs, limit = application.state_dir / "models", application.settings.local_ram
                serving = Launcher(server, process_name(), logs, limit=limit, patience=0)
                stack.push_async_callback(serving.aclose)
        yield serving


async def _look_at(application: Application, name: str, serving: Launcher | None) -> Finding:
    if not application.settings.local_url and (size := still_to_fetch(name, application.state_dir)) is not None:
        text = f"its weights, {size // 1_000_000} MB, are fetched at the first `rolecall up`"
        return Finding("not set up", name, text, "run `rolecall up` once while this machine has internet")
    try:
        model = _opened(application, name, serving)
    except ConfigError as error:
        return Finding("failed", name, str(error), _without(application, name))
    try:
        return judged(name, True, (await probe(model)).removeprefix(f"{name}: "), "")
    except ModelError as error:
        return Finding("failed", name, str(error) or type(error).__name__, _remedy(error, application, name))
    finally:
        await model.aclose()


def _opened(application: Application, name: str, serving: Launcher | None) -> Model:
    if places := application.servers.get(name):
        return unbalanced(name, places, application.settings)
    return application.open_model(name, serving)


def still_to_fetch(name: str, state_dir: Path | None = None) -> int | None:
    """Bytes of a local model's weights that are not here yet. Asking it would fetch them."""
    model, _, provider = name.rpartition("@")
    if provider != "local" or model not in CATALOGUE:
        return None
    weights = CATALOGUE[model]
    return None if (default_cache(state_dir) / weights.file).exists() else weights.fetched_size


def _remedy(error: ModelError, application: Application, name: str) -> str:
    provider = name.rpartition("@")[2]
    if isinstance(error, ModelUnauthorised):
        return f"put a valid key for @{provider} into the environment or .env, and see that its account has credit"
    if isinstance(error, NoSuchModel):
        return f"choose one of those that `rolecall models list {provider}` shows"
    if isinstance(error, RateLimited):
        return "wait, or raise the limits of your account there"
    return _without(application, name)


def _without(application: Application, name: str) -> str:
    """What becomes of the roles that would use it."""
    alone = [role.name for role in application.roles if role.models == (name,)]
    if alone:
        return f"role {alone[0]} has no other model: put this right, or give it one in config.py or GEN_MODEL"
    return "put this right, or take it out of config.py; until then the next model in order answers"
