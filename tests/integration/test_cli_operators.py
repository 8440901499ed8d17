"""The operators' verbs at a running deployment: scale, dead, stats, top, logs, check."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from pathlib import Path
from subprocess import PIPE, CompletedProcess, run

import pytest

from tests.applications import clean_environment, make_application, run_rolecall, running
from tests.integration.rolecall_process import ROLECALL, Terminal


@pytest.fixture(scope="module")
def app(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    directory = make_application(tmp_path_factory.mktemp("app"))
    with running(directory):
        yield directory


def at(app: Path, *arguments: str) -> CompletedProcess[str]:
    return run_rolecall(*arguments, environment={"ROLECALL_APP": str(app)})


def buried(app: Path, conversation: str) -> str:
    """The id of a dead letter just made in ``conversation``."""
    at(app, "ask", "bury me", "--conversation", conversation)
    listed = [json.loads(line) for line in at(app, "dead", "list", "--json").stdout.splitlines()]
    return str(next(letter["id"] for letter in listed if letter["conversation"] == conversation))


# ── notify ──────────────────────────────────────────────────────────────────────────────────────


def test_a_notice_is_sent_once_for_each_key(app: Path) -> None:
    for text, said, status in (
        ("It is done.", "sent to terminal:ann", 0),
        ("It is done.", "a notice with the key k1 was sent before", 0),
        ("It is not.", "not sent: another text was sent with the key k1", 1),
    ):
        done = at(app, "notify", "terminal:ann", text, "--key", "k1")
        assert (done.returncode, done.stdout.strip()) == (status, said)
    for verb in (("notify", "terminal:ann"), ("ask",)):
        done = at(app, *verb, " ")
        assert (done.returncode, done.stderr) == (2, "rolecall: TEXT is empty: there is nothing to send\n")


@pytest.mark.parametrize(
    ("conversation", "said"),
    [
        ("nonsense", "expected an ID such as telegram:42 or terminal:ann, or one that `rolecall logs` lists"),
        ("tg:1", "expected an ID such as telegram:42 or terminal:ann, or one that `rolecall logs` lists"),
        ("terminal", "expected an ID such as telegram:42 or terminal:ann, or one that `rolecall logs` lists"),
        ("telegram:abc", "expected telegram:CHAT or telegram:CHAT:TOPIC"),
        ("telegram", "expected telegram:CHAT or telegram:CHAT:TOPIC"),
    ],
)
def test_a_notice_to_a_conversation_that_nobody_has_is_refused_in_one_line(
    app: Path, conversation: str, said: str
) -> None:
    done = at(app, "notify", conversation, "hi")
    assert (done.stdout, done.returncode, done.stderr.count("\n")) == ("", 2, 1)
    assert done.stderr.startswith(f"rolecall: {conversation!r} ") and said in done.stderr


def test_a_notice_to_a_program_s_conversation_and_to_a_second_bot_s_is_taken(app: Path) -> None:
    assert at(app, "notify", "crm:42", "hi").returncode == 2
    assert at(app, "ask", "hello", "--conversation", "crm:42").returncode == 0
    assert at(app, "notify", "crm:42", "hi").stdout == "sent to crm:42\n"
    assert at(app, "notify", "telegram2:-42:7", "hi").stdout == "sent to telegram2:-42:7\n"


# ── scale ───────────────────────────────────────────────────────────────────────────────────────


def test_scale_takes_effect_within_two_seconds_and_stays_listed_as_live(app: Path) -> None:
    began = time.monotonic()
    done = at(app, "scale", "samplellm=4")
    assert (done.stdout, done.stderr, done.returncode) == ("samplellm  2 → 4\n", "", 0)
    assert time.monotonic() - began < 4  # of it 2 s for the effect, the rest for a Python to start
    listed = at(app, "scale").stdout.splitlines()
    assert listed[0].split() == ["role", "wanted", "running", "processes", "from"]
    assert listed[1].split() == ["manager", "1", "1", "1", "config.py"]
    assert listed[2].split(maxsplit=4) == ["samplellm", "4", "4", "1", "live, by rolecall scale; config.py says 2"]
    assert at(app, "scale", "manager=2", "samplellm=2").stdout == "manager    1 → 2\nsamplellm  4 → 2\n"
    assert at(app, "scale", "manager=1").returncode == 0


@pytest.mark.parametrize(
    ("order", "said"),
    [
        ("samplellm=many", "samplellm=many is invalid: expected an integer from 0 to 1024"),
        ("samplellm=-1", "samplellm=-1 is invalid: expected an integer from 0 to 1024"),
        ("samplellm=1025", "samplellm=1025 is invalid: expected an integer from 0 to 1024"),
        ("samplellm", "'samplellm' is invalid: expected role=count with a role of manager, samplellm"),
        ("nobody=2", "'nobody=2' is invalid: expected role=count with a role of manager, samplellm"),
        ("samplellm=256", "that makes 257 instances in one process, more than TOTAL_INSTANCES=256"),
        ("samplellm=3 samplellm=4", "samplellm is named twice: expected one count for a role"),
    ],
)
def test_a_wrong_scale_order_changes_nothing_and_says_what_is_allowed(app: Path, order: str, said: str) -> None:
    done = at(app, "scale", *order.split())
    assert (done.stdout, done.stderr, done.returncode) == ("", f"rolecall: {said}\n", 2)


# ── dead letters ────────────────────────────────────────────────────────────────────────────────


def test_a_dead_letter_is_listed_shown_and_replayed_as_the_next_turn(app: Path) -> None:
    letter_id = buried(app, "terminal:again")
    row = next(line for line in at(app, "dead", "list").stdout.splitlines() if line.startswith(letter_id))
    assert row.split()[1] == "envelope"
    assert row.split()[4:] == ["terminal:again", "samplellm", "1", "it", "was", "asked", "for"]
    shown = json.loads(at(app, "dead", "show", letter_id, "--json").stdout)
    assert (shown["reason"], shown["turn"], shown["envelope"]["payload"]["text"]) == (
        "it was asked for",
        "1",
        "bury me",
    )
    assert "it was asked for" in at(app, "dead", "show", letter_id).stdout
    done = at(app, "dead", "replay", letter_id)
    assert done.stdout.startswith(f"{letter_id}  runs as turn 2 of terminal:again (")
    assert done.returncode == 0
    assert at(app, "dead", "show", letter_id).returncode == 1


def test_dropped_letters_are_gone(app: Path) -> None:
    letter_id = buried(app, "terminal:dropped")
    assert at(app, "dead", "drop", letter_id).stdout == f"{letter_id}  dropped\n"
    assert "terminal:dropped" not in at(app, "dead", "list").stdout
    assert at(app, "dead", "drop", "--all").returncode == 0
    assert at(app, "dead", "list").stdout == "There are no dead letters.\n"


@pytest.mark.parametrize(
    ("arguments", "status", "said"),
    [
        (("show", "1-1"), 1, "there is no dead letter 1-1; see `rolecall dead list`"),
        (("show", "x"), 2, "'x' is not a dead letter ID: expected one that `rolecall dead list` shows"),
        (
            ("show", f"{'9' * 20}-1"),
            2,
            f"'{'9' * 20}-1' is not a dead letter ID: expected one that `rolecall dead list` shows",
        ),
        (("replay",), 2, "name the dead letters by their ids, or all of them with --all"),
        (("drop", "1-1", "--all"), 2, "name the dead letters by their ids, or all of them with --all"),
    ],
)
def test_a_wrong_call_about_dead_letters_is_one_line(
    app: Path, arguments: tuple[str, ...], status: int, said: str
) -> None:
    done = at(app, "dead", *arguments)
    assert (done.stderr, done.returncode) == (f"rolecall: {said}\n", status)


# ── figures ─────────────────────────────────────────────────────────────────────────────────────


def test_stats_tell_turns_users_roles_and_connections(app: Path) -> None:
    at(app, "ask", "Hello", "--conversation", "terminal:counted")
    figures = json.loads(at(app, "stats", "--json").stdout)
    assert figures["turns"]["today"] >= 1
    assert figures["users"]["terminal:counted"]["turns"] == 1
    assert figures["queues"] == {"manager": 0, "samplellm": 0}
    assert 0 <= figures["instances"]["samplellm"]["utilisation"] <= 1
    assert all(pool["open"] <= pool["allowed"] for pool in figures["connections"].values())
    for_people = at(app, "stats").stdout
    assert "users at once" in for_people
    assert "terminal:counted" in for_people


@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-", "<&- >&- 2>&-"])
def test_with_closed_standard_files_a_verb_does_its_work(app: Path, closed: str) -> None:
    shell = ["sh", "-c", f'"$@" {closed}', "sh", str(ROLECALL)]
    for verb in (("ask", "hello", "--conversation", f"terminal:{closed}"), ("logs",), ("--version",)):
        assert run([*shell, *verb], env=clean_environment({"ROLECALL_APP": str(app)})).returncode == 0
    assert "hello" in at(app, "logs", f"terminal:{closed}").stdout


@pytest.mark.parametrize(("verb", "status"), [("logs", 0), ("top", 0), ("models list", 0), ("check", 1)])
def test_a_reader_that_has_enough_is_no_failure(app: Path, verb: str, status: int) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    call = [str(ROLECALL), *verb.split()]
    done = run(call, env=clean_environment({"ROLECALL_APP": str(app)}), stdout=writer, stderr=PIPE, text=True)
    os.close(writer)
    assert (done.returncode, "rror" in done.stderr) == (status, False)


def test_what_follows_a_conversation_ends_with_its_reader(app: Path) -> None:
    at(app, "ask", "hello", "--conversation", "terminal:followed")
    shell = ["sh", "-c", '"$@" | head -1', "sh", str(ROLECALL), "logs", "terminal:followed", "--follow"]
    done = run(shell, env=clean_environment({"ROLECALL_APP": str(app)}), capture_output=True, text=True, timeout=20)
    assert (done.stdout.count("\n"), done.stderr) == (1, "")


def test_top_without_a_terminal_prints_once(app: Path) -> None:
    done = at(app, "top")
    assert done.returncode == 0
    assert "turns in flight" in done.stdout
    assert done.stdout.count("waits") == 3


def test_top_in_a_terminal_goes_on_until_q(app: Path) -> None:
    terminal = Terminal(app, ROLECALL, "top")
    try:
        terminal.wait_for("turns in flight", "samplellm:", "turns in flight", "samplellm:")
        terminal.send("q")
        assert terminal.end() == 0
    finally:
        terminal.close()


def test_ctrl_c_leaves_top_without_a_word_of_complaint(app: Path) -> None:
    terminal = Terminal(app, ROLECALL, "top")
    try:
        terminal.wait_for("turns in flight")
        terminal.send("\x03")
        assert terminal.end() == 0
        assert "Traceback" not in terminal.screen.text
    finally:
        terminal.close()


# ── logs ────────────────────────────────────────────────────────────────────────────────────────


def test_logs_list_print_and_draw_a_conversation(app: Path) -> None:
    at(app, "ask", "What is logged?", "--conversation", "terminal:logged")
    give_up = time.monotonic() + 10
    while "DELIVERED" not in at(app, "logs", "terminal:logged").stdout:
        assert time.monotonic() < give_up, "the transcript did not come"
    listed = at(app, "logs", "--user", "logged").stdout
    assert "terminal:logged" in listed and "PROCESSING_COMPLETE" in listed and "DELIVERED" not in listed
    assert "terminal:logged" not in at(app, "logs", "--user", "logged", "--errors").stdout
    records = [json.loads(line) for line in at(app, "logs", "terminal:logged", "--json").stdout.splitlines()]
    assert [record["word"] for record in records][-1] == "DELIVERED"
    assert "What is logged?" in at(app, "logs", "terminal:logged", "--grep", "RECEIVED").stdout
    assert "samplellm:" in at(app, "logs", "terminal:logged", "--timeline").stdout


def test_logs_refuse_what_makes_no_sense_in_one_line(app: Path) -> None:
    for arguments, status in ((("--follow",), 2), (("--since", "soon"), 2), (("--grep", "("), 2), (("nobody",), 1)):
        done = at(app, "logs", *arguments)
        assert (done.returncode, done.stderr.count("\n"), done.stdout) == (status, 1, ""), done.stderr


def test_check_shows_the_live_count_and_the_processes(app: Path) -> None:
    at(app, "scale", "samplellm=3")
    done = at(app, "check")
    assert done.returncode == 0, done.stdout
    assert "live, by rolecall scale; config.py says 2" in done.stdout
    assert "1 running: " in done.stdout
    at(app, "scale", "samplellm=2")


def test_a_shell_beside_a_stopped_deployment_is_told_how_to_start_it(tmp_path: Path) -> None:
    directory = make_application(tmp_path)
    for verb in (("scale",), ("stats",), ("top",), ("dead", "list")):
        done = at(directory, *verb)
        assert (done.stdout, done.returncode) == ("", 1)
        assert done.stderr == (
            f"rolecall: nothing is running in {directory}: start it with `rolecall up`, or `make run` in a checkout\n"
        )


def test_logs_without_conversations_say_so_and_where_they_looked(app: Path, tmp_path: Path) -> None:
    new = make_application(tmp_path)
    done = at(new, "logs")
    assert (done.stdout, done.returncode) == (f"there are no conversations yet, in {new}/log/conversations\n", 0)
    assert at(new, "logs", "--json").stdout == ""
    done = at(app, "logs", "--user", "nobody")
    assert (done.stdout, done.returncode) == (f"no conversation matches, in {app}/log/conversations\n", 0)
