"""The adapters under test, each with the wire of its provider."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rolecall.models import Message, Model, ModelEvent, Request
from rolecall.models.providers.endpoint import Endpoint
from rolecall.models.providers.openai import OpenAIModel
from rolecall.models.registry import open_model
from rolecall.settings import Settings
from tests.contract.model_wires import AnthropicWire, GeminiWire, OllamaWire, OpenAIWire, ResponsesWire, Wire

KEY = "sk-very-secret-key"
HELLO = Request((Message("system", "Be brief."), Message("user", "Hello")))


@dataclass(frozen=True)
class Adapter:
    """One adapter under test: its model's name, the wire of its provider, and the settings that lead to a server."""

    id: str
    name: str
    wire: Callable[[], Wire]
    settings: Callable[[str], dict[str, Any]]

    def opened(self, url: str, first: float = 30, idle: float = 30) -> Model:
        """``first`` and ``idle``: seconds of silence before the first word, and between words."""
        return open_model(self.name, self.configured(url, first, idle), Path())

    def configured(self, url: str, first: float = 30, idle: float = 30) -> Settings:
        silence = {"first_token_seconds": first, "idle_token_seconds": idle}
        return Settings(connect_seconds=2, **silence, **self.settings(url))


class LocalAdapter(Adapter):
    """The openai adapter as models on this machine use it: with no limit to the first word."""

    def opened(self, url: str, first: float = 30, idle: float = 30) -> Model:
        endpoint = Endpoint(f"{url}/v1", KEY, connect=2, first_token=None, idle_token=idle)
        return OpenAIModel(self.name, endpoint)


def _openai(url: str) -> dict[str, Any]:
    return {"openai_api_key": KEY, "openai_base_url": f"{url}/v1"}


ADAPTERS = (
    Adapter("openai", "m@openai", OpenAIWire, _openai),
    Adapter("responses", "responses:m@openai", ResponsesWire, _openai),
    Adapter(
        "anthropic",
        "m@anthropic",
        AnthropicWire,
        lambda url: {"anthropic_api_key": KEY, "anthropic_base_url": url},
    ),
    Adapter("gemini", "m@gemini", GeminiWire, lambda url: {"gemini_api_key": KEY, "gemini_base_url": url}),
    Adapter("ollama", "m@ollama", OllamaWire, lambda url: {"ollama_url": url, "ollama_api_key": KEY}),
    LocalAdapter("local", "m@local", OpenAIWire, _openai),
)


async def answer(model: Model, request: Request = HELLO) -> list[ModelEvent]:
    """All that comes."""
    return [event async for event in model.stream(request)]
