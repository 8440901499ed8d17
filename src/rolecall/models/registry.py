"""The providers, and opening a model by its name ``name@provider``."""

from __future__ import annotations

import importlib
import importlib.util
import re
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, cast

from rolecall.errors import ConfigError
from rolecall.models.fallback import Fallback
from rolecall.models.model import Delta, Message, Model, Request
from rolecall.models.stream import closing
from rolecall.settings import Settings, listed
from rolecall.version import plugins

if TYPE_CHECKING:
    from rolecall.serving.launcher import Launcher
    from rolecall.serving.weights import Progress

PROBE_SECONDS = 30
PROVIDER_NAME = re.compile(r"[a-z][a-z0-9_-]*")


class Adapter(Protocol):
    """The class of a provider's models."""

    @classmethod
    def open(cls, model: str, settings: Settings, state_dir: Path) -> Model:
        """The model ``model``, without connecting yet. Raises ConfigError for what would make every call fail."""
        ...


@dataclass(frozen=True)
class Provider:
    """A provider. Its adapter, ``cls`` of ``module``, is imported when its first model is opened.

    ``extra`` installs the modules that it ``needs``. ``title`` is its name for people. Any one of the settings ``keys``
    and ``addresses`` is enough to ask it, and ``model`` is there for everyone who has a key.
    """

    module: str
    cls: str
    extra: str | None = None
    needs: tuple[str, ...] = ()
    title: str = ""
    keys: tuple[str, ...] = ()
    addresses: tuple[str, ...] = ()
    model: str = ""
    logprobs: bool = False
    """Whether its models, or some of them, give the log probabilities of their tokens."""

    def set_up(self, settings: Settings) -> bool:
        """Whether a setting says how to reach it."""
        return any(getattr(settings, name) for name in (*self.keys, *self.addresses))

    def wanted(self) -> str:
        """The settings of which one is needed, for messages."""
        *names, last = (name.upper() for name in (*self.keys, *self.addresses))
        return f"{', '.join(names)} or {last}" if names else last

    def adapter(self) -> type[Adapter]:
        """Import the adapter."""
        return cast("type[Adapter]", getattr(importlib.import_module(self.module), self.cls))


PROVIDERS = {
    "openai": Provider(
        "rolecall.models.providers.openai", "OpenAIModel", "openai", ("openai",), "OpenAI",
        ("openai_api_key",), ("openai_base_url",), "gpt-5-mini@openai", logprobs=True,
    ),
    "anthropic": Provider(
        "rolecall.models.providers.anthropic", "AnthropicModel", "anthropic", ("anthropic",), "Anthropic",
        ("anthropic_api_key",), ("anthropic_base_url",), "claude-haiku-5-5@anthropic",
    ),
    "gemini": Provider(
        "rolecall.models.providers.gemini", "GeminiModel", "gemini", ("google.genai",), "Gemini",
        ("gemini_api_key", "google_api_key"), ("gemini_base_url",), "gemini-flash-latest@gemini",
    ),
    "ollama": Provider(
        "rolecall.models.providers.ollama", "OllamaModel", "ollama", ("ollama",), "Ollama",
        addresses=("ollama_url", "ollama_host", "ollama_api_key"),
    ),
    "local": Provider(
        "rolecall.models.providers.local", "LocalModel", "local", ("xllamacpp", "openai", "psutil"), "this machine",
        logprobs=True,
    ),
    "served": Provider("rolecall.models.providers.remote", "ServedModel", "openai", ("openai",), logprobs=True),
    "test": Provider("rolecall.models.providers.echo", "EchoModel"),
}  # fmt: skip
"""The providers of this package. Where keys of several are set, the model of the first one answers."""


Providers = Mapping[str, "Provider | type[Adapter]"]
AUTO = "auto"
"""Stands in a role's ``models`` for what ``models_by_key`` chooses."""
TINY = "smollm2@local"
"""The model that needs neither a key nor an account: 135 million parameters."""


def models_by_key(settings: Settings) -> tuple[list[str], list[str]]:
    """What ``auto`` stands for, in fallback order, and the settings that decided it: GEN_MODEL; else the model of each
    key that is set, then ``TINY`` where this machine can run it."""
    if settings.gen_model:
        return listed(settings.gen_model), ["GEN_MODEL"]
    by_key = {key: provider.model for provider in PROVIDERS.values() if provider.model for key in provider.keys}
    deciding = [key for key in by_key if getattr(settings, key)]
    tiny = [TINY] if settings.local_url or importlib.util.find_spec("xllamacpp") else []
    return list(dict.fromkeys([*(by_key[key] for key in deciding), *tiny])), [key.upper() for key in deciding]


def all_providers(own: Mapping[str, object]) -> Providers:
    """The providers of this package, of installed packages (entry points ``rolecall.providers``) and the application's
    ``own``: classes, or ``"module:Class"``. Raises ConfigError for a bad or ambiguous one."""
    added = plugins("rolecall.providers", "provider")
    found: dict[str, Provider | type[Adapter]] = dict(PROVIDERS)
    for source, providers in (("an installed package", added), ("config.py", own)):
        for name, given in providers.items():
            if name in PROVIDERS or not PROVIDER_NAME.fullmatch(name):
                expected = "expected a new name of a-z 0-9 _ -"
                raise ConfigError(f"provider {name!r} of {source} is invalid: {expected}")
            found[name] = _checked(name, given)
    return found


def _checked(name: str, given: object) -> Provider | type[Adapter]:
    if isinstance(given, str):
        module, _, cls = given.partition(":")
        if module and cls.isidentifier():
            return Provider(module, cls)
    elif isinstance(given, type) and callable(getattr(given, "open", None)):
        return cast("type[Adapter]", given)
    raise ConfigError(f"provider {name!r} is invalid: expected a class with a classmethod open(), or 'module:Class'")


def open_model(
    name: str, settings: Settings, state_dir: Path, serving: Launcher | None = None, providers: Providers | None = None
) -> Model:
    """The model ``name@provider``, without connecting to any server yet. Local models are served through ``serving``;
    ``providers`` are those of the application, see ``all_providers``.

    Raises ConfigError for a name, key or extra that would make every call fail. ``state_dir`` is where this
    application keeps what is not for people.
    """
    providers = PROVIDERS if providers is None else providers
    model, _, provider = name.rpartition("@")
    if not model or provider not in providers:
        known = ", ".join(f"@{provider}" for provider in providers)
        raise ConfigError(f"model {name!r} is invalid: expected name@provider with a provider of {known}")
    found = providers[provider]
    try:
        adapter: Any = found.adapter() if isinstance(found, Provider) else found
    except (ImportError, AttributeError) as error:
        raise ConfigError(f"provider {provider!r} cannot be loaded: {type(error).__name__}: {error}") from error
    more = (serving,) if provider == "local" else ()
    return cast(Model, adapter.open(model, settings, state_dir, *more))


def provider_problems(name: str, settings: Settings) -> str | None:
    """Why the model ``name`` cannot be used, as far as the configuration tells, or None."""
    try:
        open_model(name, settings, Path())
    except ConfigError as error:
        return str(error)
    return None


async def warm(model: Model, progress: Progress | None = None) -> None:
    """Fetch and load what ``model`` needs on this machine; nothing for a remote model. Raises ModelError."""
    for part in model.models if isinstance(model, Fallback) else (model,):
        if hasattr(part, "warm"):
            await part.warm(progress)


async def probe(model: Model) -> str:
    """Ask ``model`` for one word, and report in one line how long it took. Raises ModelError."""
    begun = time.monotonic()
    # No max_tokens: some models reject a low one. The stream is closed after the first word instead.
    asked = Request((Message("user", "Say OK."),), timeout=PROBE_SECONDS)
    async with closing(model.stream(asked)) as events:
        async for event in events:
            if isinstance(event, Delta):
                return f"{model.name}: first word after {time.monotonic() - begun:.2f} s"
    return f"{model.name}: an empty answer after {time.monotonic() - begun:.2f} s"
