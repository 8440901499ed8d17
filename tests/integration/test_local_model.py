"""smollm2@local on the real engine: one for all processes, gone with its last user, whatever is killed."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import stat
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from urllib.request import Request as HttpRequest
from urllib.request import urlopen

import psutil
import pytest

from rolecall.errors import ModelRefused, ModelUnavailable, Truncated
from rolecall.models import Delta, Done, Message, Request, Usage
from rolecall.models.local import LocalModel
from rolecall.models.registry import open_model, probe, warm
from rolecall.models.weights import default_cache, ensure_weights
from rolecall.settings import Settings

SETTINGS = Settings(local_slots=2, local_threads=1, local_context=512)
SYSTEM = Message("system", "You are a helpful assistant. Answer briefly and correctly.")
LONG = Request((Message("user", "Write a long story about a dog."),), max_tokens=400)
Processes = list[asyncio.subprocess.Process]
Start = Callable[[int], Awaitable[Processes]]


@pytest.fixture(scope="module")
def cache() -> Path:
    try:
        asyncio.run(ensure_weights("smollm2", default_cache()))
    except ModelUnavailable as error:
        pytest.skip(str(error))
    return default_cache()


@pytest.fixture
async def model(cache: Path, tmp_path: Path) -> AsyncIterator[LocalModel]:
    model = LocalModel("smollm2", SETTINGS, tmp_path, cache)
    yield model
    pid = engine_pid(tmp_path) if (tmp_path / "models/smollm2/server.json").exists() else None
    await model.aclose()
    if pid:
        await until(lambda: not psutil.pid_exists(pid), 5)


@pytest.fixture
async def users(cache: Path, tmp_path: Path) -> AsyncIterator[Start]:
    """Starts processes that use the model; what is left of them is ended afterwards."""
    started: Processes = []

    async def start(count: int) -> Processes:
        script = str(Path(__file__).with_name("local_model_user.py"))
        for _ in range(count):
            started.append(
                await asyncio.create_subprocess_exec(
                    *(sys.executable, script, str(tmp_path), str(cache)),
                    cwd=tmp_path,
                    stdin=asyncio.subprocess.PIPE,
                    stdout=asyncio.subprocess.PIPE,
                )
            )
        return started[-count:]

    yield start
    for process in started:
        if process.returncode is None:
            process.kill()
        await process.communicate()
    await until(lambda: not engines(tmp_path), 10)


async def test_it_knows_the_capital_of_france(model: LocalModel) -> None:
    asked = Request((SYSTEM, Message("user", "What is the capital of France?")))
    events = [event async for event in model.stream(asked)]
    assert "Paris" in "".join(event.text for event in events if isinstance(event, Delta))
    assert isinstance(events[-2], Usage)
    assert events[-1] == Done("stop")


async def test_several_questions_at_once_share_one_engine(model: LocalModel, tmp_path: Path) -> None:
    said = await asyncio.gather(*(probe(model) for _ in range(5)))
    assert all(line.startswith("smollm2@local: first word after") for line in said)
    record = tmp_path / "models" / "smollm2" / "server.json"
    assert stat.S_IMODE(record.stat().st_mode) == 0o600
    assert os.getsid(engine_pid(tmp_path)) != os.getsid(0), "a terminal's Ctrl-C must not reach it"


async def test_a_conversation_too_long_is_refused(model: LocalModel) -> None:
    with pytest.raises(ModelRefused, match="too long"):
        await whole(model, Request((Message("user", "word " * 2000),)))


async def test_a_cancelled_answer_frees_its_slot(model: LocalModel, tmp_path: Path) -> None:
    await model.warm()
    asking = asyncio.create_task(whole(model, LONG))
    await until(lambda: busy_slots(tmp_path) == 1, 10)
    asking.cancel()
    await until(lambda: busy_slots(tmp_path) == 0, 5)
    with pytest.raises(asyncio.CancelledError):
        await asking


async def test_a_killed_engine_is_replaced_for_the_next_question(model: LocalModel, tmp_path: Path) -> None:
    await model.warm()
    first = engine_pid(tmp_path)
    os.kill(first, signal.SIGKILL)
    await asyncio.gather(probe(model), probe(model))
    assert engine_pid(tmp_path) != first


async def test_an_engine_killed_amid_an_answer_ends_that_answer(model: LocalModel, tmp_path: Path) -> None:
    said = []
    with pytest.raises(Truncated, match="smollm2@local") as caught:
        async for event in model.stream(LONG):
            said.append(event)
            if len(said) == 3:
                os.kill(engine_pid(tmp_path), signal.SIGKILL)
    assert caught.value.text == "".join(event.text for event in said if isinstance(event, Delta))
    await probe(model)


async def test_a_file_of_ones_own_is_a_model_too(cache: Path, tmp_path: Path) -> None:
    own = tmp_path / "own.gguf"
    own.symlink_to(cache / "SmolLM2-135M-Instruct.Q4_1.gguf")
    model = open_model(f"{own}@local", SETTINGS, tmp_path)
    await warm(model)
    assert await probe(model)
    await model.aclose()


async def test_a_broken_file_gives_every_caller_the_reason_in_one_line(tmp_path: Path) -> None:
    broken = tmp_path / "broken.gguf"
    broken.write_text("no model")
    model = open_model(f"{broken}@local", SETTINGS, tmp_path)
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
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, happens: str, said: str
) -> None:
    without_core = "resource.setrlimit(resource.RLIMIT_CORE, (0, 0))"
    (tmp_path / "xllamacpp.py").write_text(f"import os, resource, signal\n{without_core}\n{happens}\n")
    (tmp_path / "own.gguf").touch()
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    model = LocalModel(f"{tmp_path}/own.gguf", SETTINGS, tmp_path)
    with pytest.raises(ModelUnavailable, match=said):
        await model.warm()
    await model.aclose()


async def test_many_processes_use_one_engine_and_the_last_takes_it_along(users: Start, tmp_path: Path) -> None:
    processes = await users(4)
    pids = {int(await said(process)) for process in processes}
    assert len(pids) == 1 == len(engines(tmp_path))
    for process in processes[:3]:
        process.kill()
        await process.wait()
    with pytest.raises(TimeoutError):
        await until(lambda: not engines(tmp_path), 1.5)
    processes[3].kill()
    await until(lambda: not engines(tmp_path), 4)


async def test_an_engine_whose_starter_is_killed_while_it_loads_is_adopted(
    users: Start, model: LocalModel, tmp_path: Path
) -> None:
    (starter,) = await users(1)
    await until(lambda: is_loading(tmp_path), 20)
    starter.kill()
    loading = engines(tmp_path)
    await model.warm()
    assert engines(tmp_path) == loading == {engine_pid(tmp_path)}


async def test_users_who_come_and_go_always_find_an_engine(cache: Path, tmp_path: Path) -> None:
    # Long enough to come back, once or more, just when the engine looks whether somebody is left.
    for _ in range(25):
        model = LocalModel("smollm2", SETTINGS, tmp_path, cache)
        await probe(model)
        await model.aclose()
    await until(lambda: not engines(tmp_path), 4)


async def whole(model: LocalModel, request: Request) -> None:
    async for _ in model.stream(request):
        pass


async def said(process: asyncio.subprocess.Process) -> bytes:
    assert process.stdout is not None
    return await asyncio.wait_for(process.stdout.readline(), 60)


async def until(condition: Callable[[], bool], seconds: float) -> None:
    async with asyncio.timeout(seconds):
        while not await asyncio.to_thread(condition):
            await asyncio.sleep(0.01)


def record_of(state_dir: Path) -> dict[str, str]:
    record = json.loads((state_dir / "models" / "smollm2" / "server.json").read_text())
    assert isinstance(record, dict)
    return record


def is_loading(state_dir: Path) -> bool:
    log = state_dir / "models" / "smollm2" / "engine.log"
    return log.exists() and "loading model" in log.read_text()


def engine_pid(state_dir: Path) -> int:
    return int(record_of(state_dir)["pid"])


def engines(directory: Path) -> set[int]:
    """The engines whose orders name ``directory``, by the log they write to."""
    found = set()
    for process in psutil.process_iter():
        try:
            if "engine.py" in " ".join(process.cmdline()) and str(directory) in os.readlink(
                f"/proc/{process.pid}/fd/2"
            ):
                found.add(process.pid)
        except (psutil.Error, OSError):
            continue
    return found


def busy_slots(state_dir: Path) -> int:
    record = record_of(state_dir)
    asked = HttpRequest(f"{record['url']}/slots", headers={"Authorization": f"Bearer {record['api_key']}"})
    with urlopen(asked, timeout=5) as answer:
        return sum(slot["is_processing"] for slot in json.load(answer))
