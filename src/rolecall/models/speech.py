"""Speech to text by VOICE_MODEL."""

from __future__ import annotations

import asyncio
import importlib
from collections.abc import AsyncIterator
from dataclasses import dataclass

from rolecall.errors import ConfigError, ModelTimeout
from rolecall.models.gate import Gate, GatedModel
from rolecall.models.model import Caller, Delta, Done, Model, ModelEvent, Request, Usage
from rolecall.models.stream import closing
from rolecall.settings import Settings

TRANSCRIBERS = {"openai": "rolecall.models.providers.openai", "test": "rolecall.models.providers.echo"}
"""Provider → the module whose ``transcribe(model, sound, media_type, settings)`` does the work."""
SECONDS = 60
TOKEN_BYTES = 200
"""A second of a voice message is about 2 kB and ten tokens."""


@dataclass
class Sound:
    """A recording as a model that answers every request with its transcription, so that it passes the same gate as
    all models. Token counts are estimates: most providers report none."""

    name: str
    data: bytes
    media_type: str
    settings: Settings

    async def stream(self, request: Request) -> AsyncIterator[ModelEvent]:
        """See Model.stream. Raises ConfigError if VOICE_MODEL names no model that can transcribe."""
        model, _, provider = self.name.rpartition("@")
        if provider not in TRANSCRIBERS:
            raise ConfigError("VOICE_MODEL is not set: expected a model that transcribes, such as whisper-1@openai")
        module = importlib.import_module(TRANSCRIBERS[provider])
        try:
            async with asyncio.timeout(SECONDS):
                text = str(await module.transcribe(model, self.data, self.media_type, self.settings)).strip()
        except TimeoutError:
            raise ModelTimeout(f"{self.name}: no transcription within {SECONDS} s") from None
        yield Delta(text)
        yield Usage(len(self.data) // TOKEN_BYTES + 1, len(text) // 4 + 1)
        yield Done("stop")

    async def aclose(self) -> None:
        """Do nothing."""


async def transcribe(
    sound: bytes, media_type: str, settings: Settings, gate: Gate | None = None, caller: Caller | None = None
) -> str:
    """Transcribe ``sound`` by VOICE_MODEL. With a ``gate``, the call counts in the model's quota and in the budgets of
    ``caller``. Raises ModelError, NotNow and OverBudget as GatedModel does, and ConfigError if VOICE_MODEL is not
    set."""
    model: Model = Sound(settings.voice_model or "", sound, media_type, settings)
    if gate is not None:
        model = GatedModel(model, gate)
    async with closing(model.stream(Request((), caller=caller))) as events:
        return "".join([event.text async for event in events if isinstance(event, Delta)])
