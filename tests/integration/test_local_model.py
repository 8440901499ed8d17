"""smollm2@local on the real engine: one for all processes, gone with its last user, whatever is killed."""

from __future__ import annotations

import asyncio
import json
import os
import signal
from collections.abc import AsyncIterator
from pathlib import Path
from urllib.request import Request as HttpRequest
from urllib.request import urlopen

import pytest

from rolecall.errors import ModelRefused, ModelUnavailable, Truncated
from rolecall.models import Delta, Done, Message, Request, Usage
from rolecall.models.providers.local import LocalModel
from rolecall.models.registry import open_model, probe, warm
from rolecall.redis.server import RedisServer
from rolecall.serving.launcher import Launcher
from rolecall.settings import Settings
from tests.serving.processes import LONG, running, weights
from tests.waiting import wait_until

SETTINGS = Settings(local_slots=2, local_threads=1, local_context=512)
SYSTEM = Message("system", "You are a helpful assistant. Answer briefly and correctly.")
STORY = Request((Message("user", "Write a long story about a dog."),), max_tokens=400)


@pytest.fixture(scope="module")
def cache() -> Path:
    return weights().parent


@pytest.fixture
async def serving(server: RedisServer, tmp_path: Path) -> AsyncIterator[Launcher]:
    serving = Launcher(server, "p1", tmp_path)
    yield serving
    await serving.aclose()
    await wait_until(lambda: not running(tmp_path))


@pytest.fixture
def model(cache: Path, serving: Launcher) -> LocalModel:
    return LocalModel("smollm2", SETTINGS, serving, cache)


async def test_it_knows_the_capital_of_france(model: LocalModel) -> None:
    asked = Request((SYSTEM, Message("user", "What is the capital of France?")))
    events = [event async for event in model.stream(asked)]
    assert "Paris" in "".join(event.text for event in events if isinstance(event, Delta))
    assert isinstance(events[-2], Usage)
    assert events[-1] == Done("stop")


async def test_several_questions_at_once_share_one_engine(model: LocalModel, serving: Launcher) -> None:
    said = await asyncio.gather(*(probe(model) for _ in range(5)))
    assert all(line.startswith("smollm2@local: first word after") for line in said)
    assert os.getsid(await engine_pid(serving)) != os.getsid(0), "a terminal's Ctrl-C must not reach it"


async def test_a_conversation_too_long_is_refused(model: LocalModel) -> None:
    with pytest.raises(ModelRefused, match="too long"):
        await whole(model, Request((Message("user", "word " * 2000),)))


async def test_a_cancelled_answer_frees_its_slot(model: LocalModel, serving: Launcher) -> None:
    await model.warm()
    asking = asyncio.create_task(whole(model, STORY))
    await wait_until(lambda: is_busy(serving, 1))
    asking.cancel()
    await wait_until(lambda: is_busy(serving, 0), seconds=5)
    with pytest.raises(asyncio.CancelledError):
        await asking


@pytest.mark.skipif(not LONG, reason="ROLECALL_SERVING_PROOF=1 runs it")
async def test_a_killed_engine_is_replaced_for_the_next_question(model: LocalModel, serving: Launcher) -> None:
    await model.warm()
    first = await engine_pid(serving)
    os.kill(first, signal.SIGKILL)
    await asyncio.gather(probe(model), probe(model))
    assert await engine_pid(serving) != first


async def test_an_engine_killed_amid_an_answer_ends_that_answer(model: LocalModel, serving: Launcher) -> None:
    said = []
    with pytest.raises(Truncated, match="smollm2@local") as caught:
        async for event in model.stream(STORY):
            said.append(event)
            if len(said) == 3:
                os.kill(await engine_pid(serving), signal.SIGKILL)
    assert caught.value.text == "".join(event.text for event in said if isinstance(event, Delta))
    await probe(model)


async def test_a_file_of_ones_own_is_a_model_too(cache: Path, serving: Launcher, tmp_path: Path) -> None:
    own = tmp_path / "own.gguf"
    own.symlink_to(cache / "SmolLM2-135M-Instruct.Q4_1.gguf")
    model = open_model(f"{own}@local", SETTINGS, tmp_path, serving)
    await warm(model)
    assert await probe(model)
    await model.aclose()


async def test_a_broken_file_gives_every_caller_the_reason_in_one_line(serving: Launcher, tmp_path: Path) -> None:
    broken = tmp_path / "broken.gguf"
    broken.write_text("no model")
    model = open_model(f"{broken}@local", SETTINGS, tmp_path, serving)
    errors = await asyncio.gather(*(warm(model) for _ in range(3)), return_exceptions=True)
    assert {type(error) for error in errors} == {ModelUnavailable}
    assert "cannot be loaded: gguf_init" in str(errors[0])
    assert "\n" not in str(errors[0])
    await model.aclose()


@pytest.mark.parametrize(
    ("happens", "said"),
    [
        ("raise ImportError('no such symbol')", r"xllamacpp cannot be loaded here: no such symbol.*OPENAI_BASE_URL"),
        ("os.kill(os.getpid(), signal.SIGILL)", r"this processor lacks .*OPENAI_API_KEY"),
        ("os.kill(os.getpid(), signal.SIGKILL)", r"was killed while loading \(SIGKILL\)"),
        ("os._exit(3)", "it ended without a word"),
    ],
)
async def test_an_engine_that_cannot_run_here_says_why_and_the_ways_out(
    serving: Launcher, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, happens: str, said: str
) -> None:
    without_core = "resource.setrlimit(resource.RLIMIT_CORE, (0, 0))"
    (tmp_path / "xllamacpp.py").write_text(f"import os, resource, signal\n{without_core}\n{happens}\n")
    (tmp_path / "own.gguf").write_text("no model")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    model = LocalModel(f"{tmp_path}/own.gguf", SETTINGS, serving)
    with pytest.raises(ModelUnavailable, match=said):
        await model.warm()
    await model.aclose()


async def whole(model: LocalModel, request: Request) -> None:
    async for _ in model.stream(request):
        pass


async def is_busy(serving: Launcher, slots: int) -> bool:
    return await busy_slots(serving) == slots


async def busy_slots(serving: Launcher) -> int:
    """As the engine itself says."""
    (server,) = await serving.directory.servers()
    asked = HttpRequest(f"{server.url}/slots", headers={"Authorization": f"Bearer {server.key}"})
    return await asyncio.to_thread(lambda: sum(slot["is_processing"] for slot in json.load(urlopen(asked, timeout=5))))


async def engine_pid(serving: Launcher) -> int:
    (server,) = await serving.directory.servers()
    return server.pid


async def test_it_makes_vectors_in_an_engine_of_its_own(model: LocalModel, serving: Launcher) -> None:
    texts = ["The cat sat on the mat.", "Shares fell by three percent.", "word " * 400, "The cat sat on the mat."]
    found = await model.embed(texts)
    assert {len(vector) for vector in found.vectors} == {576} and found.tokens > 400
    same, other = (sum(a * b for a, b in zip(found.vectors[0], found.vectors[n], strict=True)) for n in (3, 1))
    assert same == pytest.approx(1, abs=1e-3) and other < 0.95
    short = (await model.embed(texts[:1], dimensions=64)).vectors[0]
    assert len(short) == 64 and abs(sum(value * value for value in short) - 1) < 1e-3
    assert (await probe(model)).startswith("smollm2@local: first word after")
    assert len(await serving.directory.servers(machine=serving.machine)) == 2
