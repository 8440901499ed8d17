"""From a model's name to the model: the table of providers."""

from __future__ import annotations

import importlib
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import cast

from rolecall.errors import ConfigError
from rolecall.models.fallback import Fallback
from rolecall.models.model import Delta, Message, Model, Request
from rolecall.models.stream import closing
from rolecall.serving.launcher import Serving
from rolecall.settings import Settings

Progress = Callable[[int, int | None], None]
PROBE_SECONDS = 30


@dataclass(frozen=True)
class Provider:
    """Where the class is that speaks to a provider (its ``open`` takes model, settings, state_dir), and the
    extra it needs. Imported when the first model of the provider is opened."""

    module: str
    cls: str
    extra: str | None


PROVIDERS = {
    "openai": Provider("rolecall.models.providers.openai", "OpenAIModel", "openai"),
    "gemini": Provider("rolecall.models.providers.gemini", "GeminiModel", "gemini"),
    "ollama": Provider("rolecall.models.providers.ollama", "OllamaModel", "ollama"),
    "local": Provider("rolecall.models.providers.local", "LocalModel", "local"),
    "served": Provider("rolecall.models.providers.remote", "ServedModel", "openai"),
    "test": Provider("rolecall.models.providers.echo", "EchoModel", None),
}


def open_model(name: str, settings: Settings, state_dir: Path, serving: Serving | None = None) -> Model:
    """The model ``name@provider``, without a word to any server yet. One of this machine is asked through ``serving``.

    Raises ConfigError for a name, key or extra that would make every call fail. ``state_dir`` is where this
    application keeps what is not for people.
    """
    model, _, provider = name.rpartition("@")
    if not model or provider not in PROVIDERS:
        raise ConfigError(f"model {name!r}: name@provider is allowed, the provider being one of {_known()}")
    where = PROVIDERS[provider]
    cls = getattr(importlib.import_module(where.module), where.cls)
    more = (serving,) if provider == "local" else ()
    return cast(Model, cls.open(model, settings, state_dir, *more))


def open_models(names: Sequence[str], settings: Settings, state_dir: Path) -> Model:
    """One model, or several as a Fallback in the order of ``names``. Raises ConfigError, also for no name."""
    if not names:
        raise ConfigError("no model is named: give the role models=(...) in config.py, or set GEN_MODEL")
    models = [open_model(name, settings, state_dir) for name in names]
    return models[0] if len(models) == 1 else Fallback(models)


def provider_problems(name: str, settings: Settings) -> str | None:
    """What keeps the model ``name`` from being used, as far as one can tell without asking it, or None."""
    try:
        open_model(name, settings, Path())
    except ConfigError as error:
        return str(error)
    return None


async def warm(model: Model, progress: Progress | None = None) -> None:
    """Fetch and load what ``model`` needs on this machine; nothing for one elsewhere. Raises ModelError."""
    for part in model.models if isinstance(model, Fallback) else (model,):
        if hasattr(part, "warm"):
            await part.warm(progress)


async def probe(model: Model) -> str:
    """Ask ``model`` for one word, and say in one line when it came. Raises ModelError."""
    begun = time.monotonic()
    # No limit on tokens, for some models refuse a low one: the answer is left at its first word instead.
    asked = Request((Message("user", "Say OK."),), timeout=PROBE_SECONDS)
    async with closing(model.stream(asked)) as events:
        async for event in events:
            if isinstance(event, Delta):
                return f"{model.name}: first word after {time.monotonic() - begun:.2f} s"
    return f"{model.name}: an empty answer after {time.monotonic() - begun:.2f} s"


def _known() -> str:
    return ", ".join(f"@{provider}" for provider in PROVIDERS)
