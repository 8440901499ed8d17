"""A worker pays for the SDK of the provider that it asks, and for no other."""

from __future__ import annotations

import subprocess
import sys

import pytest

ASK = """
import asyncio, sys
from pathlib import Path
from rolecall.errors import ModelError
from rolecall.models import Message, Request
from rolecall.models.registry import open_model
from rolecall.settings import Settings

SDKS = ("openai", "anthropic", "google.genai", "ollama")
url = "http://127.0.0.1:1"
settings = Settings(openai_base_url=url, anthropic_base_url=url, gemini_base_url=url, ollama_url=url)

async def ask():
    model = open_model(sys.argv[1], settings, Path())
    assert not [sdk for sdk in SDKS if sdk in sys.modules], "opening imports none"
    try:
        async for _ in model.stream(Request((Message("user", "Hi"),))):
            pass
    except ModelError:
        pass
    await model.aclose()

asyncio.run(ask())
print(" ".join(sdk for sdk in SDKS if sdk in sys.modules))
"""


@pytest.mark.parametrize(
    ("name", "sdk"),
    [
        ("m@openai", "openai"),
        ("m@anthropic", "anthropic"),
        ("m@gemini", "google.genai"),
        ("m@ollama", "ollama"),
        ("m@test", ""),
    ],
)
def test_only_the_sdk_of_the_provider_is_imported_and_only_when_it_is_asked(name: str, sdk: str) -> None:
    done = subprocess.run([sys.executable, "-c", ASK, name], capture_output=True, text=True, timeout=60)
    assert (done.stdout.strip(), done.stderr) == (sdk, "")
