"""What every model adapter makes of streams that no specification foresees, and of thoughts among the text."""

from __future__ import annotations

import asyncio
import copy
import json
import os
import random
from collections.abc import Callable
from typing import Any

import pytest

from rolecall.errors import ModelError, ModelTimeout, ModelUnavailable
from rolecall.models import Delta, Done, Model, ModelEvent, Retracted, Usage
from rolecall.models.thinking import Habit
from tests.contract.model_adapters import ADAPTERS, HELLO, Adapter, answer
from tests.contract.model_vendor import Connection, Script, Vendor, refusing, saying
from tests.contract.model_wires import AnthropicWire, GeminiWire, OllamaWire, OpenAIWire, ResponsesWire

CHUNKS = int(os.environ.get("ROLECALL_ODD_PIECES", "3000"))
SEED = 20261127
ODD: tuple[Any, ...] = (
    None, [], {}, "", 0, -1, 1.5, 1e300, True, "odd", "\ud83d", [None], [[]], [{"text": "a"}], {"text": None},
    "9" * 5000,
    [{"type": "text", "text": "b"}], {"type": "thinking", "thinking": "c"}, "<think>", "</think>", {"a": {"b": {}}},
)  # fmt: skip


async def text(model: Model) -> str:
    return shown(await answer(model))


def shown(events: list[ModelEvent]) -> str:
    """The text that is left when all has come."""
    whole = ""
    for event in events:
        whole = "" if isinstance(event, Retracted) else whole + event.text if isinstance(event, Delta) else whole
    return whole


@pytest.fixture
def openai(adapter: Adapter) -> None:
    if adapter.wire is not OpenAIWire:
        pytest.skip("chat completions only")


# ── form ────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    "form",
    [
        lambda raw: b"\xef\xbb\xbf" + raw,
        lambda raw: raw.replace(b"\n", b"\r\n"),
        lambda raw: raw.replace(b"\n", b"\r"),
        lambda raw: raw.replace(b"\n\n", b"\n"),
        lambda raw: raw.replace(b"data: ", b"data:"),
        lambda raw: b": keep-alive\n\n" + raw + b": bye\n\n",
        lambda raw: b"retry: 3000\nid: 7\n" + raw,
        lambda raw: b"\n\n\n" + raw.rstrip(b"\n"),
    ],
    ids=["BOM", "CRLF", "CR", "no empty lines", "no space", "comments", "other fields", "no line end"],
)
async def test_a_stream_is_read_however_its_lines_are_written(
    model: Model, vendor: Vendor, form: Callable[[bytes], bytes]
) -> None:
    if isinstance(vendor.wire, OllamaWire) and b"data" in form(b"data: ") and form(b"x\n") == b"x\n":
        pytest.skip("events only")
    raw = form(vendor.wire.delta("Zoë ") + vendor.wire.delta("🙂") + vendor.wire.end("stop", (7, 2)))
    vendor.script = saying(raw)
    assert await answer(model) == [Delta("Zoë "), Delta("🙂"), Usage(7, 2), Done("stop")]
    vendor.script = saying(*(raw[at : at + 3] for at in range(0, len(raw), 3)))
    assert await answer(model) == [Delta("Zoë "), Delta("🙂"), Usage(7, 2), Done("stop")]


async def test_a_pair_of_surrogates_split_over_two_pieces_is_one_letter(model: Model, vendor: Vendor) -> None:
    high, low = (vendor.wire.delta("@").replace(b"@", half) for half in (rb"a\ud83d", rb"\ude42b"))
    vendor.script = saying(high, low, vendor.wire.end("stop", (7, 2)))
    assert await text(model) == "a🙂b"
    vendor.script = saying(low, high, vendor.wire.end("stop", (7, 2)))
    assert await text(model) == "\ufffdba\ufffd"


DOCUMENTS: dict[type, dict[str, Any]] = {
    OpenAIWire: {
        "object": "chat.completion",
        "choices": [{"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": "Hello"}}],
        "usage": {"prompt_tokens": 7, "completion_tokens": 2},
    },
    ResponsesWire: {
        "object": "response",
        "status": "completed",
        "error": None,
        "output": [
            {"type": "reasoning", "content": [{"type": "reasoning_text", "text": "Hm."}]},
            {"type": "message", "content": [{"type": "output_text", "text": "Hello"}]},
        ],
        "usage": {"input_tokens": 7, "output_tokens": 2},
    },
    AnthropicWire: {
        "type": "message",
        "role": "assistant",
        "content": [{"type": "thinking", "thinking": "Hm.", "signature": "s"}, {"type": "text", "text": "Hello"}],
        "stop_reason": "end_turn",
        "usage": {"input_tokens": 7, "output_tokens": 2},
    },
    GeminiWire: {
        "candidates": [{"content": {"parts": [{"text": "Hello"}]}, "finishReason": "STOP"}],
        "usageMetadata": {"promptTokenCount": 7, "candidatesTokenCount": 2},
    },
    OllamaWire: {
        "message": {"content": "Hello"},
        "done": True,
        "done_reason": "stop",
        "prompt_eval_count": 7,
        "eval_count": 2,
    },
}


@pytest.mark.parametrize("indent", [None, 2])
@pytest.mark.parametrize("listed", [False, True], ids=["object", "array"])
async def test_one_document_instead_of_a_stream_is_the_answer(
    model: Model, vendor: Vendor, indent: int | None, listed: bool
) -> None:
    document = DOCUMENTS[type(vendor.wire)]
    vendor.script = refusing(200, json.dumps([document] if listed else document, indent=indent).encode())
    assert await answer(model) == [Delta("Hello"), Usage(7, 2), Done("stop")]


@pytest.mark.parametrize("body", [b"<!DOCTYPE html><html>Sign in</html>", b"\xef\xbb\xbf\n <html>\n</html>"])
async def test_a_web_page_is_named_as_such(model: Model, vendor: Vendor, body: bytes) -> None:
    vendor.script = refusing(200, body, Content_Type="text/html")
    with pytest.raises(ModelUnavailable, match=r"a web page \(HTML\) instead of JSON; check the address"):
        await answer(model)
    vendor.script = refusing(502, body, Content_Type="text/html")
    with pytest.raises(ModelUnavailable) as caught:
        await answer(model)
    assert "<html" not in str(caught.value)


# ── fields ──────────────────────────────────────────────────────────────────────────────────────


def chunks(*found: dict[str, Any], done: bool = True) -> Script:
    raw = [b"data: " + json.dumps(chunk).encode() + b"\n\n" for chunk in found]
    return saying(*raw, *([b"data: [DONE]\n\n"] if done else []))


def delta(content: Any, finish: str | None = None, **more: Any) -> dict[str, Any]:
    return {"choices": [{"delta": {"content": content, **more}, "finish_reason": finish}]}


USED = {"choices": [], "usage": {"prompt_tokens": 7, "completion_tokens": 2}}


@pytest.mark.parametrize(
    "found",
    [
        (delta("Hello"), USED),
        (delta("Hello", "stop"), {"choices": None, "usage": None}, USED),
        (delta([{"type": "thinking", "thinking": [{"type": "text", "text": "Hm"}]}, {"type": "text", "text": "Hello"}]),
         USED),
        (delta({"type": "text", "text": "Hello"}), USED),
        (delta([{"type": "text", "text": {"value": "Hello"}}]), USED),
        (delta(None, reasoning="Hm."), delta("", reasoning_content="Hm."), delta("Hello", "STOP"), USED),
        ({"choices": [{"delta": None}]}, delta("Hello", "eos"), USED),
        ({"choices": [{"text": "Hello", "finish_reason": "stop"}]}, USED),
        (delta("Hello"), {"usage": {"prompt_tokens": "7", "completion_tokens": 2.0, "total_tokens": None}}),
    ],
    ids=["null to the end", "null usage", "thoughts in a list", "an object", "a text in an object",
         "thoughts in fields", "null delta", "completions", "counts as text"],
)  # fmt: skip
@pytest.mark.usefixtures("openai")
async def test_fields_of_any_shape_are_read_for_what_they_mean(
    model: Model, vendor: Vendor, found: tuple[dict[str, Any], ...]
) -> None:
    vendor.script = chunks(*found)
    assert await answer(model) == [Delta("Hello"), Usage(7, 2), Done("stop")]


@pytest.mark.parametrize(
    "counts", [None, {}, [], {"prompt_tokens": None, "completion_tokens": None}, {"prompt_tokens": []}]
)
@pytest.mark.usefixtures("openai")
async def test_an_answer_without_counts_is_an_answer(model: Model, vendor: Vendor, counts: Any) -> None:
    vendor.script = chunks(delta("Hello", "stop"), {"choices": [], "usage": counts})
    assert [event for event in await answer(model) if event != Usage(0, 0)] == [Delta("Hello"), Done("stop")]


@pytest.mark.parametrize(
    "counts",
    [
        {"prompt_tokens": 7, "completion_tokens": 2, "total_tokens": 59},
        {"prompt_tokens": 7, "completion_tokens": 52, "completion_tokens_details": {"reasoning_tokens": 50}},
        {"prompt_tokens": 7, "completion_tokens_details": {"reasoning_tokens": 52}},
    ],
)
@pytest.mark.usefixtures("openai")
async def test_tokens_of_thoughts_are_counted(model: Model, vendor: Vendor, counts: dict[str, Any]) -> None:
    vendor.script = chunks(delta("Hello", "stop"), {"choices": [], "usage": counts})
    assert (await answer(model))[1] == Usage(7, 52)


# ── thoughts in the text ────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("pieces", "expected"),
    [
        (["<think>\nHm.\n</think>\n\nHello"], "Hello"),
        (["<th", "ink>H", "m.</thi", "nk>Hello"], "Hello"),
        (["<THINK>Hm.</THINK>Hello"], "Hello"),
        (["Hm. ", "So.", "</think>", "\n\nHello"], "Hello"),
        (["Hel", "lo <think>hm</think>", "there"], "Hello there"),
        (["<think>Hm. I never", " end"], ""),
        (["<think>a</think>Hello</think>"], "Hello"),
        (["[THINK]Hm.[/THINK]Hello"], "Hello"),
        (["Write `<think>` and `</think>`."], "Write `<think>` and `</think>`."),
        (["```\n<think>\n</think>\n```"], "```\n<think>\n</think>\n```"),
        (["a < b, <thin ice>"], "a < b, <thin ice>"),
        (["1 <", "think"], "1 <think"),
        (["say <think> to begin"], "say <think> to begin"),
    ],
)
async def test_thoughts_in_the_text_are_never_shown(
    model: Model, vendor: Vendor, pieces: list[str], expected: str
) -> None:
    vendor.script = saying(*map(vendor.wire.delta, pieces), vendor.wire.end("stop", (7, 2)))
    events = await answer(model)
    assert "".join(event.text for event in events if isinstance(event, Delta)) == expected
    assert events[-2:] == [Usage(7, 2), Done("stop")]


async def test_thoughts_cut_at_the_limit_are_not_shown_either(model: Model, vendor: Vendor) -> None:
    vendor.script = saying(vendor.wire.delta("Hello <think>Hm"), vendor.wire.end("length", (7, 2)))
    assert await answer(model) == [Delta("Hello "), Usage(7, 2), Done("length")]


def opened(adapter: Adapter, vendor: Vendor, habit: bool | None) -> Model:
    """A model that is known to do so with its thoughts."""
    model = adapter.opened(vendor.url)
    model._habit = Habit(habit)  # type: ignore[attr-defined]
    return model


async def test_thoughts_that_no_tag_opens_are_taken_back_and_held_from_then_on(
    adapter: Adapter, vendor: Vendor
) -> None:
    model, seen = opened(adapter, vendor, None), asyncio.Event()

    async def slowly(connection: Connection) -> None:
        await connection.begin()
        await connection.say(vendor.wire.delta("Hm. "))
        await seen.wait()
        await connection.say(vendor.wire.delta("So.</think>Hello"), vendor.wire.end("stop", (7, 2)))
        await connection.close()

    vendor.script, first = slowly, list[ModelEvent]()
    async for event in model.stream(HELLO):
        seen.set()
        first.append(event)
    assert first == [Delta("Hm. "), Retracted(), Delta("Hello"), Usage(7, 2), Done("stop")]

    vendor.script = saying(
        *map(vendor.wire.delta, ["Hm. ", "So.", "</think>", "Hello"]), vendor.wire.end("stop", (7, 2))
    )
    assert await answer(model) == [Delta("Hello"), Usage(7, 2), Done("stop")]
    vendor.script = saying(vendor.wire.delta("Hm. So"), vendor.wire.end("length", (7, 2)))
    assert await answer(model) == [Usage(7, 2), Done("length")]
    await model.aclose()


@pytest.mark.parametrize(
    ("name", "thinks"),
    [("deepseek-r1:8b@ollama", True), ("Qwen3-30B-Thinking-2507@openai", True), ("qwq@openai", True),
     ("gpt-5@openai", None), ("bar1@openai", None)],
)  # fmt: skip
def test_a_name_tells_that_a_model_begins_thinking(name: str, thinks: bool | None) -> None:
    assert Habit.of(name).begins_thinking is thinks


# ── silence ─────────────────────────────────────────────────────────────────────────────────────


async def test_bytes_that_bring_no_text_are_no_silence(impatient: Model, vendor: Vendor) -> None:
    async def patient(connection: Connection) -> None:
        await connection.begin()
        for _ in range(10):
            await connection.say(b"\n" if isinstance(vendor.wire, OllamaWire) else b": keep-alive\n\n")
            await asyncio.sleep(0.1)
        await connection.say(vendor.wire.delta("Hi"))
        for _ in range(10):
            await connection.say(b"\n" if isinstance(vendor.wire, OllamaWire) else b": keep-alive\n\n")
            await asyncio.sleep(0.1)
        await connection.say(vendor.wire.end("stop", (7, 2)))
        await connection.close()

    vendor.script = patient
    assert await answer(impatient) == [Delta("Hi"), Usage(7, 2), Done("stop")]


async def test_bytes_without_end_do_not_outlast_the_whole_limit(model: Model, vendor: Vendor, warm: None) -> None:
    async def endless(connection: Connection) -> None:
        await connection.begin()
        while not connection.gone.is_set():
            await connection.say(b"\n" if isinstance(vendor.wire, OllamaWire) else b": keep-alive\n\n")
            await asyncio.sleep(0.05)

    vendor.script = endless
    with pytest.raises(ModelTimeout, match=r"no whole answer within 0\.\d+ s"):
        async with asyncio.timeout(10):
            await answer(model, type(HELLO)(HELLO.messages, timeout=0.5))


# ── fuzz ────────────────────────────────────────────────────────────────────────────────────────


def mutated(raw: bytes, rng: random.Random) -> bytes:
    """A chunk of a provider with some of its values replaced by odd ones, and some of its bytes by others."""
    begin = raw.index(b"{")
    try:
        data = json.loads(raw[begin:].split(b"\n")[0])
    except ValueError:
        return raw
    for _ in range(rng.choice((0, 1, 1, 2, 5))):
        _replace(data, rng)
    raw = raw[:begin] + json.dumps(data, ensure_ascii=rng.random() < 0.5).encode("utf-8", "surrogatepass") + b"\n\n"
    if rng.random() < 0.1:
        at = rng.randrange(len(raw))
        raw = raw[:at] + rng.choice((b"", b"\xff", b"\x00", b"<", b"\r", b"{", b'"')) + raw[at + 1 :]
    return raw


def _replace(data: Any, rng: random.Random) -> None:
    while isinstance(data, dict | list) and data:
        key = rng.choice(list(data) if isinstance(data, dict) else range(len(data)))
        if not isinstance(data[key], dict | list) or not data[key] or rng.random() < 0.3:
            data[key] = copy.deepcopy(rng.choice(ODD))
            return
        data = data[key]


def pieces_of(vendor: Vendor, rng: random.Random, count: int) -> list[bytes]:
    wire = vendor.wire
    made: list[Callable[[], bytes]] = [
        lambda: wire.delta(rng.choice(("Hel", "lo ", "<think>", "</think>", "`", "🙂", "\n", ""))),
        lambda: wire.delta("word "),
        lambda: wire.thought("hm"),
        lambda: wire.call("weather", {"at": "Bern"}),
        lambda: wire.end(rng.choice(("stop", "length", "tool_calls")), (7, 2)),
        lambda: b": comment\n\n",
        lambda: rng.choice(
            (b"data: [DONE]\n\n", b"\n", b"\r\n", b"event: x\n", b"data:\n\n", b"<html>\n", b"[" * 3000)
        ),
    ]
    weights = (30, 30, 10, 5, 2, 5, 1)
    found = [rng.choices(made, weights)[0]() for _ in range(count - 1)]
    return [
        *(mutated(raw, rng) if b"{" in raw and rng.random() < 0.1 else raw for raw in found),
        wire.end("stop", (7, 2)),
    ]


@pytest.mark.parametrize("adapter", ADAPTERS[:4], ids=lambda adapter: str(adapter.id), indirect=True)
async def test_thousands_of_odd_chunks_end_in_answers_or_in_known_failures(
    adapter: Adapter, vendor: Vendor, model: Model
) -> None:
    rng, sent, whole, failed = random.Random(SEED), 0, 0, 0
    while sent < CHUNKS:
        pieces = pieces_of(vendor, rng, rng.randint(1, 60))
        sent += len(pieces)
        raw = b"".join(pieces)
        step = rng.choice((1 << 20, 1000, 150))
        vendor.script = saying(*(raw[at : at + step] for at in range(0, len(raw), step)))
        model._habit.begins_thinking = rng.choice((None, True, False))  # type: ignore[attr-defined]
        try:
            async with asyncio.timeout(20):
                events = await answer(model)
            assert isinstance(events[-1], Done)
            whole += 1
        except ModelError:
            failed += 1
    assert whole and failed, "both kinds of streams were among them"
