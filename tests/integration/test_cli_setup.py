"""`rolecall setup`: four questions, each answer tested, and a .env that only its owner reads."""

from __future__ import annotations

import asyncio
import stat
import subprocess
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from dotenv import dotenv_values

from rolecall.config import load
from tests.applications import CONFIG, clean_environment, make_application, own_modules
from tests.command_line import call
from tests.contract.model_lists import answering, openai_list
from tests.contract.model_vendor import Vendor, refusing, saying
from tests.contract.model_wires import OpenAIWire
from tests.telegram.api import TelegramApi

AUTO = CONFIG.replace('"echo@test"', '"auto"')
NO_BOT = ("", "")
"""No token, and this machine."""


@pytest.fixture
async def vendor() -> AsyncIterator[Vendor]:
    vendor = Vendor(OpenAIWire())
    vendor.script = saying(vendor.wire.delta("OK"), vendor.wire.end("stop", (1, 1)))
    await vendor.start()
    yield vendor
    await vendor.stop()


async def setup(directory: Path, *answers: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """`rolecall setup` with ``answers`` on stdin, in an environment without keys."""

    def run() -> subprocess.CompletedProcess[str]:
        stdin = "".join(f"{answer}\n" for answer in answers)
        return call(("setup", "--app", directory), clean_environment(environment), stdin=stdin)

    return await asyncio.to_thread(run)


def dotenv(directory: Path) -> dict[str, str | None]:
    path = directory / ".env"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    return dotenv_values(path)


async def test_a_key_that_works_is_written_and_chooses_its_model(tmp_path: Path, vendor: Vendor) -> None:
    directory = make_application(tmp_path, config=AUTO)
    done = await setup(directory, "1", "sk-good", *NO_BOT, OPENAI_BASE_URL=f"{vendor.url}/v1")
    assert (done.returncode, done.stderr) == (0, ""), done.stdout
    assert "✓ gpt-5-mini@openai: first word after" in done.stdout
    assert vendor.connections[0].headers["authorization"] == "Bearer sk-good"
    assert dotenv(directory) == {"OPENAI_API_KEY": "sk-good"}
    with own_modules():
        assert load(directory).roles[1].models[0] == "gpt-5-mini@openai"


async def test_a_key_that_is_refused_is_asked_for_again_and_never_shown(tmp_path: Path, vendor: Vendor) -> None:
    vendor.script = refusing(401, vendor.wire.refusal(401, "Incorrect API key: sk-wrong"))
    directory = make_application(tmp_path, config=AUTO)
    answers = ("1", "sk-wrong", "n", "sk-other", "y")
    done = await setup(directory, *answers, *NO_BOT, OPENAI_BASE_URL=f"{vendor.url}/v1")
    assert done.stdout.count("✗ gpt-5-mini@openai: 127.0.0.1 refuses the key (401)") == 2
    assert "sk-" not in done.stdout + done.stderr
    assert dotenv(directory) == {"OPENAI_API_KEY": "sk-other"}


async def test_without_a_key_at_hand_another_model_can_be_chosen(tmp_path: Path) -> None:
    directory = make_application(tmp_path, config=AUTO)
    done = await setup(directory, "1", "", "6", *NO_BOT)
    assert (done.returncode, done.stdout.count("number [1]: ")) == (0, 3), done.stdout
    assert "needs nothing: the defaults do" in done.stdout


async def test_the_other_lines_of_env_stay_and_a_value_is_replaced_where_it_stands(
    tmp_path: Path, vendor: Vendor
) -> None:
    before = "# mine\nOPENAI_API_KEY=old\n\nLOG_LEVEL=DEBUG # loud\nGEN_MODEL=a@gemini"
    directory = make_application(tmp_path, config=AUTO, dotenv=before)
    (directory / ".env").chmod(0o644)
    done = await setup(directory, "1", "new key'", *NO_BOT, OPENAI_BASE_URL=f"{vendor.url}/v1")
    assert done.returncode == 0, done.stdout
    assert dotenv(directory)["OPENAI_API_KEY"] == "new key'"
    lines = (directory / ".env").read_text().splitlines()
    assert lines == ["# mine", r"OPENAI_API_KEY='new key\''", "", "LOG_LEVEL=DEBUG # loud", "GEN_MODEL="]


async def test_a_provider_is_chosen_over_one_whose_key_was_there_before(tmp_path: Path) -> None:
    directory = make_application(tmp_path, config=AUTO, dotenv="OPENAI_API_KEY=k\n")
    await setup(directory, "6", *NO_BOT)
    assert dotenv(directory) == {"OPENAI_API_KEY": "k", "GEN_MODEL": "smollm2@local"}


async def test_a_compatible_server_lists_its_models_and_the_chosen_one_is_asked(tmp_path: Path) -> None:
    directory = make_application(tmp_path, config=AUTO)
    with answering(openai_list("qwen3", "gemma4")) as url:
        done = await setup(directory, "5", "localhost", f"{url}/v1", "", "2", "y", *NO_BOT)
    assert "OPENAI_BASE_URL=localhost is invalid: expected an address such as" in done.stdout
    assert "2  qwen3@openai" in done.stdout
    assert dotenv(directory) == {"OPENAI_BASE_URL": f"{url}/v1", "GEN_MODEL": "qwen3@openai"}


async def test_telegram_is_asked_about_its_token_and_who_may_use_the_bot_is_checked(tmp_path: Path) -> None:
    directory = make_application(tmp_path, config=AUTO)
    async with TelegramApi() as api:
        answers = ("6", "4242:wrong-telegram", "n", api.token, "2", "me", "11223344, 5", "1")
        done = await setup(directory, *answers, TELEGRAM_API_URL=api.url)
    assert done.returncode == 0, done.stdout
    assert "✗ Telegram does not know the token" in done.stdout
    assert "✓ Telegram knows it as @" in done.stdout
    assert "'me' is invalid: expected IDs such as 11223344,55667788" in done.stdout
    assert dotenv(directory) == {"TELEGRAM_BOT_TOKEN": api.token, "TELEGRAM_ALLOWED": "11223344, 5"}
    assert api.token not in done.stdout


async def test_a_server_of_ones_own_is_asked_for_its_version(tmp_path: Path, server_url: str) -> None:
    directory = make_application(tmp_path, config=AUTO)
    done = await setup(directory, "6", "", "3", "redis://127.0.0.1:1", "n", server_url)
    assert "✗ " in done.stdout
    assert "answers" in done.stdout.splitlines()[-3]
    assert dotenv(directory) == {"REDIS_URL": server_url}


async def test_opening_the_page_to_the_network_makes_a_key(tmp_path: Path) -> None:
    directory = make_application(tmp_path, config=AUTO)
    done = await setup(directory, "6", "", "2")
    written = dotenv(directory)
    assert written["HTTP_HOST"] == "0.0.0.0"
    assert written["HTTP_KEY"] and len(written["HTTP_KEY"]) >= 32
    assert written["HTTP_KEY"] in done.stdout


async def test_leaving_before_the_end_writes_nothing(tmp_path: Path) -> None:
    directory = make_application(tmp_path, config=AUTO)
    done = await setup(directory, "6", "")
    assert done.stdout.splitlines()[-1] == "Left before the end: nothing was written."
    assert (done.returncode, done.stderr) == (1, "")
    assert not (directory / ".env").exists()


async def test_an_answer_that_has_no_effect_is_pointed_out(tmp_path: Path, vendor: Vendor) -> None:
    directory = make_application(tmp_path)
    environment = {"OPENAI_BASE_URL": f"{vendor.url}/v1", "OPENAI_API_KEY": "other"}
    done = await setup(directory, "1", "sk-good", *NO_BOT, **environment)
    assert "OPENAI_API_KEY is also set in the environment, which takes precedence over .env" in done.stdout
    assert "config.py names the models of samplellm: models=('auto',) there follows .env" in done.stdout


async def test_without_an_application_there_is_nothing_to_set_up() -> None:
    with tempfile.TemporaryDirectory() as directory:
        done = await setup(Path(directory))
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith(f"rolecall: no config.py in {Path(directory).resolve()}")
