"""The chat prompt in a real pseudo-terminal, and the text it makes of an answer."""

from __future__ import annotations

import asyncio
import stat
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from rich.cells import cell_len

from rolecall import connect
from rolecall.bus.events import AnswerText, Event
from rolecall.frontends.terminal.text import Rows, plain, rows_of
from tests.applications import own_modules, running
from tests.integration.rolecall_process import ROLECALL, Terminal, environment, make_application

CTRL_C, CTRL_D, CTRL_Z = "\x03", "\x04", "\x1a"
LONG = "please say all of this again, slowly, so that there is time to see it"
Open = Callable[..., Terminal]


@pytest.fixture(scope="module")
def app(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    directory = make_application(tmp_path_factory.mktemp("app"))
    with running(directory, environment=environment(ECHO_DELAY="1.5")):
        yield directory


@pytest.fixture
def open_terminal() -> Iterator[Open]:
    opened: list[Terminal] = []

    def open_one(directory: Path, *command: str, **settings: str) -> Terminal:
        opened.append(Terminal(directory, *command, **settings))
        return opened[-1]

    yield open_one
    for terminal in opened:
        terminal.close()


def test_an_answer_streams_and_the_prompt_takes_more_meanwhile(app: Path, open_terminal: Open) -> None:
    terminal = open_terminal(app, ROLECALL, "chat", "--name", "ann")
    terminal.wait_for("›")
    terminal.send(f"{LONG}\r")
    terminal.wait_for(f"› {LONG}", "echo: pl", "samplellm · ", "Ctrl-C stops")
    assert f"echo: {LONG}" not in terminal.screen.text
    terminal.send("second\rthird\r/whoami\r")
    terminal.wait_for("waiting, place 1: second", "waiting, place 2: third")
    terminal.wait_for("› /whoami", "This conversation: terminal:ann ")
    terminal.wait_for(f"echo: {LONG}", "› second", "echo: second", "› third", "echo: third\n")
    assert "waiting" not in terminal.screen.text
    terminal.send(CTRL_D)
    assert terminal.end() == 0


def test_the_first_interrupt_stops_the_answers_and_the_second_leaves(app: Path, open_terminal: Open) -> None:
    terminal = open_terminal(app, ROLECALL, "chat", "--name", "bob")
    terminal.wait_for("›")
    terminal.send(f"{LONG}\rsecond\r")
    terminal.wait_for("waiting, place 1: second", "samplellm · ")
    terminal.send(CTRL_C)
    terminal.wait_for("stopped", "› second", "stopped", "stopped, Ctrl-C again leaves")
    terminal.send("still here\r")
    terminal.wait_for("echo: still here\n")
    terminal.send(f"{LONG}\r")
    terminal.wait_for("echo: still here", "samplellm · ")
    terminal.send(CTRL_C + CTRL_C)
    assert terminal.end() == 0
    assert "Traceback" not in terminal.screen.text
    assert terminal.screen.text.rstrip().endswith("stopped")


def test_what_was_said_is_remembered_for_its_owner_alone(app: Path, open_terminal: Open) -> None:
    for keys in ("\x15say this", "\x1b[A"):  # on an emptied line; the second time by the arrow up
        terminal = open_terminal(app, ROLECALL, "chat", "--name", "cat")
        terminal.wait_for("›")
        terminal.wait_for("› say this", poke=keys)
        terminal.send("\r")
        terminal.wait_for("echo: say this\n")
        terminal.send(CTRL_C)
        assert terminal.end() == 0
    history = app / ".rolecall" / "chat_history"
    assert stat.S_IMODE(history.stat().st_mode) == 0o600
    assert "+say this" in history.read_text(encoding="utf-8")


def test_a_command_is_completed_by_the_tab_key(app: Path, open_terminal: Open) -> None:
    terminal = open_terminal(app, ROLECALL, "chat", "--name", "eve")
    terminal.wait_for("›")
    terminal.send("/wh")
    terminal.wait_for("/whoami", "Your ID and settings")
    terminal.send("\t\r")
    terminal.wait_for("This conversation: terminal:eve ")
    terminal.send(CTRL_D)
    assert terminal.end() == 0


def test_keys_that_are_no_utf_8_are_sent_as_from_a_pipe(app: Path, open_terminal: Open) -> None:
    terminal = open_terminal(app, ROLECALL, "chat", "--name", "fay")
    terminal.wait_for("›")
    terminal.send(b"caf\xe9 now\r")
    terminal.wait_for("echo: caf\ufffd now\n")
    terminal.send(CTRL_C)
    assert terminal.end() == 0


def test_ctrl_z_suspends_the_chat_until_it_is_brought_back(app: Path, open_terminal: Open) -> None:
    terminal = open_terminal(app, "bash", "--norc", "-i", PS1="shell> ")
    terminal.send(f'"{ROLECALL}" chat --name gil\r')
    terminal.wait_for("›")
    terminal.send("half a line" + CTRL_Z)
    terminal.wait_for("Stopped")
    terminal.send("echo $((40 + 2))\r")
    terminal.wait_for("Stopped", "\n42")
    terminal.send("fg\r")
    terminal.wait_for("› half a line")
    terminal.send(" and the rest\r")
    terminal.wait_for("echo: half a line and the rest\n")
    terminal.send(CTRL_C)
    terminal.wait_for("echo: half a line and the rest\n", "shell>")
    terminal.send("exit\r")
    assert terminal.end() == 0


def test_an_answer_that_was_cut_says_so(app: Path, open_terminal: Open) -> None:
    terminal = open_terminal(app, ROLECALL, "chat", "--name", "cut")
    terminal.wait_for("›")
    terminal.send("/cut now\r")
    terminal.wait_for("Once upon a", "… Cut off at the model's length limit.")
    terminal.send(CTRL_C)
    assert terminal.end() == 0


def test_a_notice_is_shown_at_the_prompt(app: Path, open_terminal: Open) -> None:
    terminal = open_terminal(app, ROLECALL, "chat", "--name", "told")
    terminal.wait_for("›")
    terminal.send("hello\r")
    terminal.wait_for("echo: hello")

    async def tell() -> None:
        async with connect(app=app) as assistant:
            assert await assistant.notify("terminal:told", "Your export is ready.")

    with own_modules():
        asyncio.run(tell())
    terminal.wait_for("Your export is ready.")
    terminal.send(CTRL_D)
    assert terminal.end() == 0


def test_a_failure_is_shown_with_its_turn(app: Path, open_terminal: Open) -> None:
    terminal = open_terminal(app, ROLECALL, "chat", "--name", "dan")
    terminal.wait_for("›")
    terminal.send("/broken now\r")
    terminal.wait_for("it is broken", "(turn ")
    terminal.send(CTRL_C)
    assert terminal.end() == 0


def test_under_make_two_interrupts_end_everything_cleanly(tmp_path: Path, open_terminal: Open) -> None:
    terminal = open_terminal(make_application(tmp_path / "app"), "make", "run", ECHO_DELAY="5")
    terminal.wait_for("is up in", "›")
    terminal.send(f"{LONG}\r")
    terminal.wait_for("samplellm · ")
    terminal.send(CTRL_C)
    terminal.wait_for("stopped, Ctrl-C again leaves")
    terminal.send(CTRL_C)
    assert terminal.end() == 0
    assert "***" not in terminal.screen.text and "Traceback" not in terminal.screen.text


def test_up_starts_again_when_its_loop_is_blocked_and_the_chat_goes_on(tmp_path: Path, open_terminal: Open) -> None:
    directory = make_application(tmp_path / "app")
    times = {"LEASE_SECONDS": "1", "HEARTBEAT_SECONDS": "0.25", "SCAN_SECONDS": "0.25", "BLOCK_SECONDS": "0.6"}
    terminal = open_terminal(directory, ROLECALL, "up", ECHO_DELAY="0.1", **times)
    terminal.wait_for("is up in", "›")

    terminal.send("/block please\rsecond\r")
    terminal.wait_for(
        "blocked the event loop", "is up in", "› /block please", "Sorry", "› second", "echo: second", seconds=40
    )
    terminal.send("third\r")
    terminal.wait_for("› third", "echo: third\n")

    assert not list(directory.rglob("chat_unanswered*"))
    terminal.send(CTRL_D)
    assert terminal.end() == 0
    assert "Traceback" not in terminal.screen.text


def delta(position: int, text: str) -> Event:
    return Event("delta", "1-0", "1", text, position=position)


def test_each_character_of_an_answer_is_shown_once() -> None:
    answer = AnswerText()
    pieces = [answer.apply(event) for event in (delta(0, "abc"), delta(1, "bcde"), delta(9, "xyz"))]
    assert pieces == ["abc", "de", ""]
    assert answer.rest("abcdefghixyz") == "fghixyz"


def test_an_answer_begun_again_is_shown_from_its_start() -> None:
    answer = AnswerText()
    assert not answer.restart()
    answer.apply(delta(0, "first try"))
    assert answer.restart()
    assert answer.apply(delta(0, "second")) == "second"
    assert answer.rest("another text") is None


def test_rows_break_at_spaces_and_never_exceed_their_width() -> None:
    assert rows_of("one two three", 8) == ["one two", "three"]
    assert rows_of("a\n\nb", 8) == ["a", "", "b"]
    assert rows_of("  unbreakable", 8) == ["  unbrea", "kable"]
    wide = rows_of("日本語の長い文章 and more", 7)
    assert "".join(wide).replace(" ", "") == "日本語の長い文章andmore"
    assert max(cell_len(row) for row in wide) <= 7


def test_rows_are_the_same_however_the_text_came() -> None:
    text = "a text of some words, of which verylongonesaresome\nand a second line"
    rows = Rows(lambda: 12)
    done = [row for char in text for row in rows.add(char)]
    assert done + rows.end() == rows_of(text, 12)


def test_what_steers_a_terminal_is_left_out() -> None:
    assert plain("a\x1b[31m\tb\x07\r\nc\x9b1m") == "a[31m    b\nc1m"
