"""Models that write down what is said."""

from __future__ import annotations

import asyncio
import importlib
from collections.abc import AsyncIterator
from dataclasses import dataclass

from rolecall.errors import ConfigError, ModelTimeout
from rolecall.models.gate import Gate, Guarded
from rolecall.models.model import Caller, Delta, Done, Model, ModelEvent, Request, Usage
from rolecall.models.stream import closing
from rolecall.settings import Settings

HEARING = {"openai": "rolecall.models.providers.openai", "test": "rolecall.models.providers.echo"}
"""Provider → the module whose ``transcribe`` takes model, sound, media type and settings."""
SECONDS = 60
TOKEN_BYTES = 200
"""Of the sound that messengers send, a second has about ten tokens, and 2 kB."""


@dataclass
class Sound:
    """What is to be written down, as a model whose answer to any request are the words in it. So it passes the gate
    that all models have. Tokens are a guess: most providers count none."""

    name: str
    data: bytes
    media_type: str
    settings: Settings

    async def stream(self, request: Request) -> AsyncIterator[ModelEvent]:
        """See Model.stream. Raises ConfigError where no such model can be asked."""
        model, _, provider = self.name.rpartition("@")
        if provider not in HEARING:
            raise ConfigError(
                "voice messages cannot be heard here: VOICE_MODEL names no model, such as whisper-1@openai"
            )
        module = importlib.import_module(HEARING[provider])
        try:
            async with asyncio.timeout(SECONDS):
                text = str(await module.transcribe(model, self.data, self.media_type, self.settings)).strip()
        except TimeoutError:
            raise ModelTimeout(f"{self.name}: nothing was written down within {SECONDS} s") from None
        yield Delta(text)
        yield Usage(len(self.data) // TOKEN_BYTES + 1, len(text) // 4 + 1)
        yield Done("stop")

    async def aclose(self) -> None:
        """There is nothing to close."""


async def transcribe(
    sound: bytes, media_type: str, settings: Settings, gate: Gate | None = None, caller: Caller | None = None
) -> str:
    """The words in ``sound``, by VOICE_MODEL, counted in its quota and in the budgets of ``caller`` where it has a
    ``gate``. Raises ModelError, NotNow and OverBudget as Guarded does, and ConfigError when no such model is named."""
    model: Model = Sound(settings.voice_model or "", sound, media_type, settings)
    if gate is not None:
        model = Guarded(model, gate)
    async with closing(model.stream(Request((), caller=caller))) as events:
        return "".join([event.text async for event in events if isinstance(event, Delta)])
