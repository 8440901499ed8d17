"""Tools: functions a model calls, tools of other servers, and answers that are data."""

from __future__ import annotations

import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel

from rolecall import Agent, Context, Envelope, Role, ToolServer
from tests.contract.model_vendor import Connection, Vendor
from tests.contract.model_wires import OpenAIWire
from tests.deployment import deployed

MODELS = ("some-model@openai",)
PROGRAM = Path(__file__).parents[1] / "tool_program.py"


@pytest.fixture
async def provider() -> AsyncIterator[Vendor]:
    """A provider of models on the loopback."""
    vendor = Vendor(OpenAIWire())
    await vendor.start()
    yield vendor
    await vendor.stop()


def calling(name: str, /, **arguments: Any) -> Any:
    """A model that calls a tool, and then tells the result."""

    async def script(connection: Connection) -> None:
        last, wire = connection.body["messages"][-1], connection.wire
        await connection.begin()
        if last["role"] == "tool":
            await connection.say(wire.delta("I heard: "), wire.delta(last["content"]), wire.end("stop", (9, 4)))
        else:
            await connection.say(wire.delta("Let me see."), wire.call(name, arguments), wire.end("tool_calls", (7, 3)))
        await connection.close()

    return script


def saying(*texts: str) -> Any:
    """A model that says ``texts``, one an answer."""
    left = list(texts)

    async def script(connection: Connection) -> None:
        await connection.begin()
        await connection.say(connection.wire.delta(left.pop(0)), connection.wire.end("stop", (5, 5)))
        await connection.close()

    return script


def weather(city: str) -> str:
    """Tell the weather of a city."""
    return f"sunny in {city}"


async def test_a_model_calls_a_function_and_answers_with_its_result(tmp_path: Path, provider: Vendor) -> None:
    class ManagerAgent(Agent):
        async def handle(self, envelope: Envelope, ctx: Context) -> Envelope:
            return envelope.reply(await ctx.stream(ctx.model, [], envelope.text, tools=[weather]))

    provider.script = calling("weather", city="Rome")
    roles = (Role(ManagerAgent, models=MODELS),)
    async with deployed(tmp_path, roles, scribe=True, openai_base_url=provider.url) as app:
        events = await app.events(await app.say("terminal:ann", "What is the weather in Rome?"))

        assert events[-1].text == "Let me see.\n\nI heard: sunny in Rome"
        streamed = "".join(event.text for event in events if event.kind == "delta")
        assert streamed.startswith("Let me see.") and events[-1].text.startswith(streamed)
        assert (events[-1].payload["tokens_in"], events[-1].payload["tokens_out"]) == (16, 7)
    transcript = next(app.log_dir.rglob("*.log")).read_text()
    assert 'NOTE: tool weather({"city": "Rome"}) → sunny in Rome (0.0' in transcript


async def test_notes_and_calls_of_tools_stand_once_however_often_the_handler_runs(
    tmp_path: Path, provider: Vendor
) -> None:
    class ManagerAgent(Agent):
        async def handle(self, envelope: Envelope, ctx: Context) -> Envelope:
            answer = await ctx.stream(ctx.model, [], envelope.text, tools=[weather])
            ctx.log("before")
            await ctx.sleep(0.1)
            ctx.log("between")
            await ctx.sleep(0.1)
            ctx.log("after")
            return envelope.reply(answer)

    provider.script = calling("weather", city="Rome")
    roles = (Role(ManagerAgent, models=MODELS),)
    async with deployed(tmp_path, roles, scribe=True, openai_base_url=provider.url) as app:
        await app.ask("terminal:ann", "What is the weather in Rome?")
    transcript = next(app.log_dir.rglob("*.log")).read_text()
    notes = [line.partition(" NOTE: ")[2].split()[0] for line in transcript.splitlines() if " NOTE: " in line]
    assert notes == ["session", "tool", "before", "between", "after"]
    assert 'NOTE: tool weather({"city": "Rome"}) → sunny in Rome (0.0' in transcript
    assert f"PROCESSING_COMPLETE: reply 35 chars, {MODELS[0]}: " in transcript


async def test_a_model_calls_the_tools_of_another_server(tmp_path: Path, provider: Vendor) -> None:
    class ManagerAgent(Agent):
        async def handle(self, envelope: Envelope, ctx: Context) -> Envelope:
            return envelope.reply(await ctx.ask(ctx.model, [], envelope.text, tools=[await ctx.tools("notes")]))

    provider.script = calling("read_note", name="monday")
    roles = (Role(ManagerAgent, models=MODELS),)
    servers = {"notes": ToolServer(command=(sys.executable, str(PROGRAM)), seconds=30)}
    async with deployed(tmp_path, roles, tool_servers=servers, openai_base_url=provider.url) as app:
        assert (await app.ask("terminal:ann", "What do I have to do?")).text.endswith("I heard: monday: buy milk")
        assert (await app.ask("terminal:bob", "And I?")).text.endswith("I heard: monday: buy milk")


async def test_a_tool_server_that_is_away_ends_the_turn_with_a_clear_word(tmp_path: Path, provider: Vendor) -> None:
    class ManagerAgent(Agent):
        async def handle(self, envelope: Envelope, ctx: Context) -> Envelope:
            return envelope.reply(await ctx.ask(ctx.model, [], envelope.text, tools=[await ctx.tools("notes")]))

    roles = (Role(ManagerAgent, models=MODELS),)
    servers = {"notes": ToolServer(url="http://127.0.0.1:1/mcp?key=s3cret")}
    async with deployed(tmp_path, roles, tool_servers=servers, openai_base_url=provider.url) as app:
        event = await app.ask("terminal:ann", "What do I have to do?")

        assert event.kind == "error"
        assert "a tool that this needs isn't available right now" in event.text
        ((_, letter),) = await app.session.server.call("XRANGE", app.session.bus.shards[0].dead, "-", "+")
        assert b"the tool server notes (http://127.0.0.1:1/mcp) is unavailable" in b" ".join(letter)
        assert b"s3cret" not in b" ".join(letter)


async def test_an_answer_can_be_data(tmp_path: Path, provider: Vendor) -> None:
    class Person(BaseModel):
        name: str
        age: int

    class ManagerAgent(Agent):
        async def handle(self, envelope: Envelope, ctx: Context) -> Envelope:
            person = await ctx.extract(Person, ctx.model, [], envelope.text)
            return envelope.reply(f"{person.name} will be {person.age + 1}")

    provider.script = saying('{"name": "Ann"}', '{"name": "Ann", "age": 34}')
    roles = (Role(ManagerAgent, models=MODELS),)
    async with deployed(tmp_path, roles, openai_base_url=provider.url) as app:
        assert (await app.ask("terminal:ann", "Ann is 34.")).text == "Ann will be 35"
    assert provider.connections[0].body["response_format"]["type"] == "json_schema"
    assert "age: Field required" in provider.connections[1].body["messages"][-1]["content"]
