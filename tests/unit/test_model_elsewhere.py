"""Local models at a server elsewhere: LOCAL_URL."""

from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import SecretStr

from rolecall.errors import ModelUnavailable, NoSuchModel
from rolecall.models.model import Message, Request
from rolecall.models.providers.local import LocalModel
from rolecall.settings import Settings

ASKED = Request((Message("user", "Hello"),))


async def refusal(url: str, kind: type[Exception]) -> str:
    model = LocalModel.open("smollm2", Settings(local_url=url, local_key=SecretStr("k" * 22)), Path())
    with pytest.raises(kind) as caught:
        async for _ in model.stream(ASKED):
            pass
    await model.aclose()
    return str(caught.value)


async def test_where_nobody_set_up_a_server_the_turn_ends_with_what_to_do() -> None:
    said = await refusal("http://no-such-host.invalid:10009", NoSuchModel)
    assert "docker compose --profile local up" in said and "OPENAI_API_KEY" in said


async def test_a_server_that_is_away_is_waited_for() -> None:
    assert "smollm2@local" in await refusal("http://127.0.0.1:9", ModelUnavailable)
