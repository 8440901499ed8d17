"""echo@test: the model for tests and demos."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from rolecall.errors import ModelTimeout
from rolecall.models import Delta, Done, Message, Request, Usage
from rolecall.models.registry import open_model
from rolecall.settings import Settings

TALK = Request((Message("user", "one"), Message("assistant", "echo: one"), Message("user", "two words")))


async def test_it_repeats_the_last_words_of_the_user() -> None:
    model = open_model("echo@test", Settings(), Path())
    assert [event async for event in model.stream(TALK)] == [
        Delta("echo: two words"),
        Usage(5, 3),
        Done("stop"),
    ]


@pytest.mark.parametrize("count", [2, 7, 1000])
async def test_its_pieces_make_the_whole(count: int) -> None:
    model = open_model("echo@test", Settings(echo_deltas=count), Path())
    pieces = [event.text async for event in model.stream(TALK) if isinstance(event, Delta)]
    assert "".join(pieces) == "echo: two words"
    assert len(pieces) == min(count, len("echo: two words"))


async def test_it_takes_the_time_it_is_told() -> None:
    model = open_model("echo@test", Settings(echo_delay=0.2, echo_deltas=4), Path())
    begun = time.monotonic()
    assert [event async for event in model.stream(TALK)][-1] == Done("stop")
    assert 0.19 <= time.monotonic() - begun < 1


async def test_it_keeps_the_time_of_the_request() -> None:
    model = open_model("echo@test", Settings(echo_delay=60), Path())
    with pytest.raises(ModelTimeout):
        async for _ in model.stream(Request(TALK.messages, timeout=0.01)):
            pass
