"""Models that write down what is said."""

from __future__ import annotations

import asyncio
import importlib

from rolecall.errors import ConfigError, ModelTimeout
from rolecall.settings import Settings

HEARING = {"openai": "rolecall.models.openai", "test": "rolecall.models.echo"}
"""Provider → the module whose ``transcribe`` takes model, sound, media type and settings."""
SECONDS = 60


async def transcribe(sound: bytes, media_type: str, settings: Settings) -> str:
    """The words in ``sound``, by VOICE_MODEL. Raises ModelError, and ConfigError when no such model is named."""
    model, _, provider = (settings.voice_model or "").rpartition("@")
    if provider not in HEARING:
        raise ConfigError("voice messages cannot be heard here: VOICE_MODEL names no model, such as whisper-1@openai")
    module = importlib.import_module(HEARING[provider])
    try:
        async with asyncio.timeout(SECONDS):
            return str(await module.transcribe(model, sound, media_type, settings)).strip()
    except TimeoutError:
        raise ModelTimeout(f"{settings.voice_model}: nothing was written down within {SECONDS} s") from None
