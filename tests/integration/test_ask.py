"""`rolecall ask` and the piped `rolecall chat`, as scripts use them."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from rolecall.frontends.texts import say
from tests.applications import running
from tests.integration.rolecall_process import ROLECALL, environment, make_application, rolecall


@pytest.fixture(scope="module")
def app(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    directory = make_application(tmp_path_factory.mktemp("app"))
    with running(directory, environment=environment()):
        yield directory


def test_the_answer_is_on_stdout_and_nothing_else_is_written(app: Path) -> None:
    done = rolecall(app, "ask", "What is it?")
    assert (done.stdout, done.stderr, done.returncode) == ("echo: What is it?\n", "", 0)


def test_a_dash_reads_the_question_from_stdin(app: Path) -> None:
    assert rolecall(app, "ask", "-", stdin="two\nlines").stdout == "echo: two\nlines\n"


def test_json_tells_the_whole_outcome_in_one_object(app: Path) -> None:
    done = rolecall(app, "ask", "Hello", "--conversation", "terminal:json", "--json")
    told = json.loads(done.stdout)
    assert done.stdout.count("\n") == 1
    assert 0.5 < told.pop("seconds") < 15
    assert told.pop("short_id").endswith(f"-{told['turn']}")
    assert told.pop("tokens_in") > told.pop("tokens_out") == 2
    assert told == {
        "conversation": "terminal:json",
        "turn": "1",
        "kind": "final",
        "text": "echo: Hello",
        "model": "echo@test",
        "finish": "stop",
    }


def test_each_call_is_a_conversation_of_its_own_unless_one_is_named(app: Path) -> None:
    first, second = (rolecall(app, "ask", "/whoami").stdout for _ in range(2))
    assert first.startswith("This conversation: terminal:ask-") and first != second
    assert (
        "This conversation: terminal:mine " in rolecall(app, "ask", "/whoami", "--conversation", "terminal:mine").stdout
    )


def test_an_answer_that_was_cut_is_told_on_stderr(app: Path) -> None:
    done = rolecall(app, "ask", "Hello", "--role", "cut")
    assert (done.stdout, done.returncode) == ("Once upon a\n", 0)
    assert done.stderr == "rolecall: Cut off at the model's length limit.\n"
    assert json.loads(rolecall(app, "ask", "Hello", "--role", "cut", "--json").stdout)["finish"] == "length"


def test_a_failure_is_on_stderr_with_exit_status_1(app: Path) -> None:
    done = rolecall(app, "ask", "Hello", "--role", "broken")
    assert (done.stdout, done.returncode) == ("", 1)
    assert "it is broken" in done.stderr and "(turn " in done.stderr and done.stderr.count("\n") == 1


def test_a_failure_in_json_is_on_stdout_too(app: Path) -> None:
    done = rolecall(app, "ask", "Hello", "--role", "broken", "--json")
    assert (json.loads(done.stdout)["kind"], done.returncode) == ("error", 1)


def test_an_argument_that_is_no_text_is_named_in_one_line(tmp_path: Path) -> None:
    for verb in (["ask"], ["key", "new"], ["ask", "hi", "--role"]):
        done = subprocess.run([ROLECALL, *verb, b"caf\xe9"], cwd=tmp_path, env=environment(), capture_output=True)
        assert done.returncode == 2
        assert (
            done.stderr
            == rb"rolecall: 'caf\udce9' is no UTF-8 text: check the encoding of the terminal or script" + b"\n"
        )


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="only Linux has /dev/full")
def test_output_that_cannot_be_written_is_one_line_on_stderr(app: Path) -> None:
    for verb in (["ask", "hi"], ["models", "list"], ["--help"]):
        with open("/dev/full", "w") as full:
            done = subprocess.run(
                [ROLECALL, *verb], cwd=app, env=environment(), stdout=full, stderr=subprocess.PIPE, text=True
            )
        assert (done.stderr, done.returncode) == (
            "rolecall: cannot write the output: No space left on device\n", 1
        )  # fmt: skip


def test_a_text_that_is_too_long_is_refused(app: Path) -> None:
    done = rolecall(app, "ask", "-", "--json", stdin="x" * 70_000)
    assert (json.loads(done.stdout)["kind"], done.returncode) == ("refused", 1)
    assert "longer than 64" in done.stderr


def test_the_timeout_stops_the_turn(app: Path) -> None:
    done = rolecall(app, "ask", "Hello", "--timeout", "0.2", "--conversation", "terminal:late")
    assert (done.stdout, done.returncode) == ("", 1)
    assert "no answer within 0.2 s" in done.stderr
    assert "nothing to stop" in rolecall(app, "ask", "/stop", "--conversation", "terminal:late").stdout


def test_an_interrupt_stops_the_turn_however_slow_the_server_is(app: Path) -> None:
    command = [ROLECALL, "ask", "Hello", "--conversation", "terminal:cut"]
    with subprocess.Popen(command, cwd=app, env=environment(), stderr=subprocess.PIPE, text=True) as asking:
        give_up = time.monotonic() + 10
        while not list(app.glob("log/conversations/terminal*cut*/*/*.log")):
            assert time.monotonic() < give_up
            time.sleep(0.01)
        server = json.loads((app / ".rolecall" / "server.json").read_bytes())["pid"]
        os.kill(server, signal.SIGSTOP)  # busy, or far away
        try:
            asking.send_signal(signal.SIGINT)
            with pytest.raises(subprocess.TimeoutExpired):
                asking.wait(1)
        finally:
            os.kill(server, signal.SIGCONT)
        told = asking.communicate(timeout=10)[1]
    assert (told, asking.returncode) == ("rolecall: stopped\n", 130)
    assert "nothing to stop" in rolecall(app, "ask", "/stop", "--conversation", "terminal:cut").stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["x", "--role", "nobody"], "there is no such role; there are manager, command, samplellm, broken"),
        (["x", "--model", "no@where"], "there are echo@test"),
        ([" "], "TEXT is empty"),
    ],
)
def test_a_wrong_call_is_refused_with_what_is_allowed(app: Path, arguments: list[str], message: str) -> None:
    done = rolecall(app, "ask", *arguments)
    assert (done.stdout, done.returncode) == ("", 2)
    assert message in done.stderr


def test_commands_are_answered_in_the_language_of_the_terminal(app: Path) -> None:
    asked = rolecall(app, "ask", "/help", LANG="de_DE.UTF-8")
    assert "Sprache meiner Antworten" in asked.stdout, asked.stdout
    cleared = rolecall(app, "ask", "/clear", LANG="C.UTF-8", LC_ALL="pt_BR.UTF-8")
    assert cleared.stdout == f"{say('pt', 'forgotten')}\n", cleared.stderr


def test_a_piped_chat_answers_each_line_in_order(app: Path) -> None:
    done = rolecall(app, "chat", stdin="one\n\ntwo\n/whoami\n")
    one, two, whoami = done.stdout.splitlines()
    assert (one, two, done.stderr, done.returncode) == ("echo: one", "echo: two", "", 0)
    assert whoami.startswith("This conversation: terminal:kim ")


def test_with_nothing_running_it_says_so_within_two_seconds(tmp_path: Path) -> None:
    directory, began = make_application(tmp_path / "app"), time.monotonic()
    done = rolecall(directory, "ask", "Hello")
    assert time.monotonic() - began < 2
    assert (done.stdout, done.returncode) == ("", 1)
    assert "nothing is running" in done.stderr and "`make run`" in done.stderr and done.stderr.count("\n") == 1
    assert not (directory / ".rolecall").exists()


def test_a_server_that_cannot_be_reached_is_named(tmp_path: Path) -> None:
    url = f"unix://:secret@{tmp_path / 'gone'}"
    done = rolecall(make_application(tmp_path / "app"), "ask", "Hello", REDIS_URL=url)
    assert (done.stdout, done.returncode) == ("", 1)
    assert "no server answers at" in done.stderr and done.stderr.count("\n") == 1
    assert "secret" not in done.stderr
