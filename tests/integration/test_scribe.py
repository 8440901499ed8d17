"""The scribe against a real server and real disks: killed, doubled, wiped, full, attacked."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import resource
import shutil
import signal
import stat
import subprocess
import tempfile
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator
from contextlib import asynccontextmanager
from datetime import UTC, tzinfo
from io import StringIO
from pathlib import Path

import pytest
from rich.console import Console

from rolecall.cli import logs
from rolecall.redis import keys
from rolecall.redis.embedded import EmbeddedServer
from rolecall.redis.keys import ShardKeys
from rolecall.redis.server import RedisServer
from rolecall.transcripts import reading
from rolecall.transcripts.files import LogEntry, TranscriptFiles
from rolecall.transcripts.record import (
    Record,
    conversation_dir,
    directories,
    format_line,
    parse_line,
    read_records,
    session_files,
)
from rolecall.transcripts.scribe import Scribe
from tests.command_line import open_module
from tests.waiting import wait_until

KILLS = int(os.environ.get("ROLECALL_SCRIBE_KILLS", "12"))
"""How often the scribe is killed; a proof sets more."""
LOG = ShardKeys(0).log
SESSION = 1_795_000_000_000
QUICK = 0.8
"""Seconds of a lease, where a test waits for one to end."""


@pytest.fixture
async def embedded(tmp_path: Path) -> AsyncIterator[EmbeddedServer]:
    runtime = Path(tempfile.mkdtemp())
    embedded = await EmbeddedServer.join(tmp_path / "state", appendfsync="everysec", runtime_dir=runtime)
    yield embedded
    await embedded.leave()
    shutil.rmtree(runtime)


@pytest.fixture
async def server(embedded: EmbeddedServer) -> AsyncIterator[RedisServer]:
    connection = RedisServer(embedded.url, patience=0.2)
    yield connection
    await connection.aclose()


@pytest.fixture
def log_dir(tmp_path: Path) -> Path:
    return tmp_path / "log"


class Process:
    """A scribe in a process of its own."""

    def __init__(self, kind: str, server: RedisServer, log_dir: Path, lease_seconds: float = 15) -> None:
        self.process = open_module("tests.integration.scribe_user", kind, server.url, log_dir, str(lease_seconds))

    async def says(self, what: str) -> None:
        line = await asyncio.to_thread(self.process.stdout.readline)
        assert what in line, f"waited for {what!r}, heard {line!r}"

    def end(self, how: int = signal.SIGKILL) -> None:
        self.process.send_signal(how)
        self.process.communicate()


@pytest.fixture
def start(server: RedisServer, log_dir: Path) -> Iterator[Callable[..., Process]]:
    started: list[Process] = []

    def begin(kind: str = "run", lease_seconds: float = 15, directory: Path = log_dir) -> Process:
        started.append(Process(kind, server, directory, lease_seconds))
        return started[-1]

    yield begin
    for process in started:
        process.end()


@asynccontextmanager
async def writing(
    server: RedisServer, log_dir: Path, lease_seconds: float = 15, shards: int = 1
) -> AsyncIterator[Scribe]:
    """A scribe in this process, stopped in the end."""
    scribe = Scribe(server, shards, log_dir, process="m4:1", tz=UTC, lease_seconds=lease_seconds)
    task = asyncio.create_task(scribe.run(), name="scribe of a test")
    try:
        yield scribe
    finally:
        await scribe.stop()
        await task


async def add(
    server: RedisServer, text: str, *, conversation: str = "telegram:42", word: str = "NOTE", session: int = SESSION,
    instance: str = "manager:m4:12345:1", log: str = LOG,
) -> str:  # fmt: skip
    fields = ("c", conversation, "s", session, "t", "1", "ms", session, "d", 0, "i", instance, "w", word, "x", text)
    encoded = [field.encode("utf-8", "surrogateescape") if isinstance(field, str) else field for field in fields]
    added: bytes = await server.call("XADD", log, "*", *encoded)
    return added.decode()


async def drained(server: RedisServer, log: str = LOG) -> None:
    async def empty() -> bool:
        return bool(await server.call("XLEN", log) == 0) and await pending(server, log) == 0

    await wait_until(empty, what="the log stream to be written and deleted")


async def pending(server: RedisServer, log: str = LOG) -> int:
    groups = await server.call("XINFO", "GROUPS", log)
    return sum(group[group.index(b"pending") + 1] for group in groups)


def written(log_dir: Path, conversation: str = "telegram:42") -> list[Record]:
    return list(read_records(log_dir / "conversations" / conversation_dir(conversation), UTC))


def assert_whole(log_dir: Path, conversation: str, texts: list[str]) -> None:
    """Every record once, in order, and no line that is not one."""
    files = session_files(log_dir / "conversations" / conversation_dir(conversation))
    lines = [line for file in files for line in file.read_text(encoding="utf-8").split("\n") if line]
    assert all(file.read_bytes().endswith(b"\n") for file in files)
    found = [parse_line(line, UTC) for line in lines]
    assert [record.text if record else "torn" for record in found] == texts


async def test_records_become_lines_of_a_private_file_and_leave_the_stream(server: RedisServer, log_dir: Path) -> None:
    await add(server, "session of telegram:42 title Ana")
    async with writing(server, log_dir):
        await drained(server)
        await add(server, 'telegram:42/1 "Hello"', word="RECEIVED")
        await drained(server)
    (file,) = session_files(log_dir / "conversations" / conversation_dir("telegram:42"))
    assert file.relative_to(log_dir).parts[2:] == ("2026.11.18", "11:06:40.log")
    assert [record.text for record in written(log_dir)] == ["session of telegram:42 title Ana", 'telegram:42/1 "Hello"']
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert {stat.S_IMODE(parent.stat().st_mode) for parent in file.parents[:3]} == {0o700}


async def test_a_scribe_that_is_stopped_while_it_writes_also_writes_what_came_meanwhile(
    server: RedisServer, log_dir: Path
) -> None:
    begun, free = threading.Event(), threading.Event()

    class SlowDisk(TranscriptFiles):
        def write(self, entries: Iterable[LogEntry]) -> None:
            begun.set()
            assert free.wait(20)
            super().write(entries)

    await add(server, "1")
    scribe = Scribe(server, 1, log_dir, process="m4:1", targets=[SlowDisk(log_dir, UTC)])
    task = asyncio.create_task(scribe.run())
    await wait_until(begun.is_set, what="the first write")
    await add(server, "2")
    await scribe.stop()
    free.set()
    await task
    assert [record.text for record in written(log_dir)] == ["1", "2"]


async def test_no_line_is_lost_doubled_or_torn_however_often_the_scribe_is_killed(
    server: RedisServer, log_dir: Path, start: Callable[..., Process]
) -> None:
    texts: dict[str, list[str]] = {f"telegram:{number}": [] for number in range(3)}
    for round in range(KILLS):
        for conversation, expected in texts.items():
            for _ in range(20):
                expected.append(f"{len(expected)} of {conversation}")
                await add(server, expected[-1], conversation=conversation)
        if round % 2:  # at a moment of chance: while it starts, reads, writes or acknowledges
            process = start("run")
            await process.says("ready")
            await asyncio.sleep((round * 7919 % 40) / 1000)
        else:  # between write and acknowledgement
            process = start("halt")
            await process.says("ready")
            await process.says("written")
        process.end()
    async with writing(server, log_dir):
        await drained(server)
    for conversation, expected in texts.items():
        assert_whole(log_dir, conversation, expected)


async def test_a_successor_in_the_same_directory_goes_on_at_once(
    server: RedisServer, log_dir: Path, start: Callable[..., Process]
) -> None:
    first = start("run", lease_seconds=40)
    await add(server, "1")
    await drained(server)
    start("run", lease_seconds=1)
    first.end()
    await add(server, "2")
    await wait_until(lambda: len(written(log_dir)) == 2, what="the standby to take over")
    assert_whole(log_dir, "telegram:42", ["1", "2"])


async def test_only_one_of_two_directories_gets_the_records_and_the_other_takes_over_when_the_lease_ends(
    server: RedisServer, log_dir: Path, tmp_path: Path, start: Callable[..., Process]
) -> None:
    first = start("run", lease_seconds=QUICK)
    await add(server, "1")
    await drained(server)
    other = tmp_path / "other"
    start("run", lease_seconds=QUICK, directory=other)
    await wait_until((other / ".scribe").exists, what="the standby to start")
    await add(server, "2")
    await drained(server)  # written and not yet deleted, it would be in both directories
    first.end()
    await add(server, "3")
    await wait_until(lambda: len(written(other)) == 1, what="the standby to take over")
    assert_whole(log_dir, "telegram:42", ["1", "2"])
    assert_whole(other, "telegram:42", ["3"])


async def test_a_frozen_scribe_keeps_its_directory_and_goes_on_when_it_wakes(
    server: RedisServer, log_dir: Path, start: Callable[..., Process]
) -> None:
    first = start("run", lease_seconds=QUICK)
    await add(server, "1")
    await drained(server)
    first.process.send_signal(signal.SIGSTOP)
    async with writing(server, log_dir, QUICK) as standby:
        await wait_until(lambda: _async(server.call("EXISTS", keys.lease("scribe")), 0), what="the lease to end")
        await add(server, "2")
        assert not standby.writing
        first.process.send_signal(signal.SIGCONT)
        await drained(server)
        assert not standby.writing
    assert_whole(log_dir, "telegram:42", ["1", "2"])


async def _async(reply: Awaitable[object], wanted: object) -> bool:
    return await reply == wanted


async def test_a_server_that_dies_and_comes_back_costs_nothing_and_is_said_once(
    embedded: EmbeddedServer, server: RedisServer, log_dir: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with writing(server, log_dir):
        await add(server, "1")
        await drained(server)
        info: bytes = await server.call("INFO", "server")
        os.kill(int(info.partition(b"process_id:")[2].split()[0]), signal.SIGKILL)
        await wait_until(lambda: bool(caplog.records), what="the warning")
        await embedded.revive()
        await add(server, "2")
        await drained(server)
    assert_whole(log_dir, "telegram:42", ["1", "2"])
    assert "transcripts wait for the server" in caplog.text


async def test_a_line_torn_by_a_power_cut_is_cut_off_and_written_anew(server: RedisServer, log_dir: Path) -> None:
    await add(server, "1")
    async with writing(server, log_dir):
        await drained(server)
    (file,) = session_files(log_dir / "conversations" / conversation_dir("telegram:42"))
    file.write_bytes(file.read_bytes() + file.read_bytes()[:60])
    await add(server, "2")
    async with writing(server, log_dir):
        await drained(server)
    assert_whole(log_dir, "telegram:42", ["1", "2"])


async def add_together(server: RedisServer, *texts: str, entry_id: str = "*") -> str:
    """One entry with a record of each text, as scripts write those of one turn."""
    fields: list[str | int] = ["c", "telegram:42", "s", SESSION, "t", "1"]
    for text in texts:
        fields += ["ms", SESSION, "d", 0, "i", "manager:m4:12345:1", "w", "NOTE", "x", text]
    added: bytes = await server.call("XADD", LOG, entry_id, *fields)
    return added.decode()


async def test_an_entry_of_several_records_becomes_as_many_lines_beside_entries_of_one(
    server: RedisServer, log_dir: Path
) -> None:
    await add(server, "1")
    together = await add_together(server, *(str(number) for number in range(2, 14)))
    await add(server, "14")
    async with writing(server, log_dir):
        await drained(server)
    assert_whole(log_dir, "telegram:42", [str(number) for number in range(1, 15)])
    assert [record.id for record in written(log_dir)[1:4]] == [together, f"{together}.01", f"{together}.02"]
    assert written(log_dir)[12].id == f"{together}.11"


@pytest.mark.parametrize("kept", [1, 2, 3])
async def test_an_entry_of_several_records_that_was_half_written_is_completed(
    server: RedisServer, log_dir: Path, kept: int
) -> None:
    together = await add_together(server, "1", "2", "3")
    async with writing(server, log_dir):
        await drained(server)
    (file,) = session_files(log_dir / "conversations" / conversation_dir("telegram:42"))
    lines = file.read_bytes().splitlines(keepends=True)
    file.write_bytes(b"".join(lines[:kept]) + (lines[kept][:40] if kept < 3 else b""))
    await server.call("DEL", LOG)  # the same entry once more, as after a crash between writing and deleting
    await add_together(server, "1", "2", "3", entry_id=together)
    async with writing(server, log_dir):
        await drained(server)
    assert_whole(log_dir, "telegram:42", ["1", "2", "3"])


async def test_a_full_disk_stops_no_one_loses_nothing_and_is_said_once(
    server: RedisServer, log_dir: Path, caplog: pytest.LogCaptureFixture
) -> None:
    log_dir.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "none", log_dir], capture_output=True)
    if mounted.returncode:
        pytest.skip("only root may make a tiny disk; the next test fills one by a limit")
    try:
        ballast = log_dir / "ballast"
        texts = [f"{number} {'x' * 500}" for number in range(20)]
        with caplog.at_level(logging.WARNING, "rolecall.transcripts.scribe"):
            async with writing(server, log_dir):
                await add(server, texts[0])
                await drained(server)
                ballast.write_bytes(b"x" * (os.statvfs(log_dir).f_bavail * 4096))
                for text in texts[1:]:
                    await add(server, text)
                await wait_until(lambda: bool(caplog.records), what="the warning")
                assert await pending(server) > 0
                ballast.unlink()
                await drained(server)
        assert_whole(log_dir, "telegram:42", texts)
        assert [record.levelname for record in caplog.records] == ["WARNING"]
        assert "no space" in caplog.text
    finally:
        subprocess.run(["umount", log_dir], check=True)


async def test_a_write_that_stops_half_way_leaves_no_half_line(
    server: RedisServer, log_dir: Path, start: Callable[..., Process]
) -> None:
    process = start("run")
    await process.says("ready")
    await add(server, "0")
    await drained(server)
    resource.prlimit(process.process.pid, resource.RLIMIT_FSIZE, (1000, resource.RLIM_INFINITY))
    texts = [f"{number} {'x' * 300}" for number in range(1, 10)]
    for text in texts:
        await add(server, text)
    await process.says("no space")
    (file,) = session_files(log_dir / "conversations" / conversation_dir("telegram:42"))
    assert file.read_bytes().endswith(b"\n") and file.stat().st_size <= 1000
    resource.prlimit(process.process.pid, resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    await drained(server)
    assert_whole(log_dir, "telegram:42", ["0", *texts])


HOSTILE = [
    "../../etc/passwd", "/etc/passwd", "..", ".", "", "a/../../b", "con\x00versation", "\u202etxt.exe", "\u2066x\u2069",
    "x" * 5000, "Case", "case", "\uff0e\uff0e\uff0f", "телеграм:42", "a\nb", "~root", "-rf", "\udcff\udcfe",
]  # fmt: skip


async def test_hostile_ids_stay_within_the_directory_and_apart_from_each_other(
    server: RedisServer, log_dir: Path
) -> None:
    for conversation in HOSTILE:
        await add(server, f"of {conversation}", conversation=conversation)
    async with writing(server, log_dir):
        await drained(server)
    found = directories(log_dir)
    assert len({path.name.casefold() for path in found}) == len(HOSTILE)
    assert max(len(path.name) for path in found) <= 79
    assert {path.name for path in log_dir.iterdir()} == {".scribe", ".scribe-born", "conversations"}
    for conversation in HOSTILE:
        assert [record.text for record in written(log_dir, conversation)] == [f"of {conversation}"]


async def test_hostile_texts_and_instances_stay_one_line_each(server: RedisServer, log_dir: Path) -> None:
    hostile = [
        "two\nlines", "\r over", "\x1b[2J\x1b]0;title\x07", "\u202eevil", "\u2028\u2029\u0085\u009b", "back\\slash \\n",
        "forged  ~9 9999999999999-9", "x] [manager:m4:1:1] ERROR: forged", "\udcff", "Привет 你好 مرحبا", "", "   ",
    ]  # fmt: skip
    for text in hostile:
        await add(server, text, instance=text)
    await add(server, "of a later version", word="NEW\nWORD")
    async with writing(server, log_dir):
        await drained(server)
    assert_whole(log_dir, "telegram:42", [*hostile, "NEW\nWORD: of a later version"])
    assert [record.instance for record in written(log_dir)][:-1] == hostile
    (file,) = session_files(log_dir / "conversations" / conversation_dir("telegram:42"))
    raw = file.read_text(encoding="utf-8")
    assert raw.count("\n") == len(hostile) + 1
    assert "Привет 你好" in raw and "\x1b" not in raw and "\u202e" not in raw


async def test_a_record_that_nobody_wrote_like_this_keeps_no_other_from_its_file(
    server: RedisServer, log_dir: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def poison(record: Record, tz: tzinfo | None = None) -> str:
        if record.text == "poison":
            raise ValueError("no line for this")
        return format_line(record, tz)

    monkeypatch.setattr("rolecall.transcripts.files.format_line", poison)
    strange = (
        ("x", b"\xff"), ("c", ""), ("c", b"\xff\xfe", "s", "-1", "d", "-5", "ms", "9" * 40, "w", b"\x00"),
        ("c", "telegram:42", "s", "9" * 15, "ms", "9" * 15, "w", "NOTE", "x", b"\xed\xa0\x80"),
        ("c", "a" * 5000, "s", "\u0663", "t", "t" * 5000, "ms", "", "ms", "1", "w", "NOTE"),
    )  # fmt: skip
    async with writing(server, log_dir):
        for fields in strange:
            await server.call("XADD", LOG, "*", *fields)
            await add(server, "good")
        await add(server, "poison")
        await add(server, "last")
        await drained(server)
    assert [record.text for record in written(log_dir) if record.text in ("good", "last")] == [*["good"] * 5, "last"]
    assert any("no line for this" in message for message in caplog.messages)


async def test_a_defect_of_the_scribe_is_told_and_ends_it_not(
    server: RedisServer, log_dir: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with writing(server, log_dir) as scribe:
        await wait_until(lambda: scribe.writing, what="the scribe to lead")
        with monkeypatch.context() as broken:
            broken.setattr(scribe._targets[0], "write", lambda entries: 1 / 0)
            await add(server, "waits")
            await wait_until(
                lambda: "the scribe failed and starts again" in caplog.messages, what="the defect to be told"
            )
        await drained(server)
    assert_whole(log_dir, "telegram:42", ["waits"])


@pytest.mark.parametrize("step", ["conversations", "conversation", "day", "file"])
async def test_links_are_not_followed(
    server: RedisServer, log_dir: Path, tmp_path: Path, step: str, caplog: pytest.LogCaptureFixture
) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    path = log_dir / "conversations" / conversation_dir("telegram:42") / "2026.11.18" / "11:06:40.log"
    link = {"conversations": path.parents[2], "conversation": path.parents[1], "day": path.parent, "file": path}[step]
    link.parent.mkdir(parents=True)
    link.symlink_to(outside / "target" if step == "file" else outside)
    await add(server, "1")
    async with writing(server, log_dir):
        await drained(server)
    assert list(outside.iterdir()) == []
    assert "not written" in caplog.text


async def test_a_wiped_server_begins_new_files_and_nothing_is_skipped(server: RedisServer, log_dir: Path) -> None:
    # A clock set back: the ids of the new server are lower than those in the file.
    await server.call("XADD", LOG, "9000000000000-0", "c", "telegram:42", "s", SESSION, "w", "NOTE", "x", "before")
    async with writing(server, log_dir):
        await drained(server)
        await server.call("FLUSHALL")
        await add(server, "after")
        await wait_until(lambda: len(written(log_dir)) == 2, what="the record of the new server")
    assert [record.text for record in written(log_dir)] == ["before", "after"]
    files = session_files(log_dir / "conversations" / conversation_dir("telegram:42"))
    assert [file.name for file in files] == ["11:06:40.log", "11:06:40.1.log"]


async def test_forget_removes_what_was_written_and_only_that(server: RedisServer, log_dir: Path) -> None:
    await add(server, "kept", conversation="telegram:7")
    await add(server, "gone")
    await add(server, "", word="FORGET")
    await add(server, "after")
    await add(server, "", conversation="telegram:unknown", word="FORGET")
    async with writing(server, log_dir):
        await drained(server)
        assert_whole(log_dir, "telegram:42", ["after"])
        await add(server, "", word="FORGET")
        await drained(server)
    assert [path.name for path in directories(log_dir)] == [conversation_dir("telegram:7")]


async def test_a_file_removed_by_hand_is_begun_again(server: RedisServer, log_dir: Path) -> None:
    async with writing(server, log_dir):
        await add(server, "1")
        await drained(server)
        session_files(log_dir / "conversations" / conversation_dir("telegram:42"))[0].unlink()
        await add(server, "2")
        await drained(server)
    assert_whole(log_dir, "telegram:42", ["2"])


async def test_many_conversations_and_shards_share_one_scribe(server: RedisServer, log_dir: Path) -> None:
    names = [f"http:{number}" for number in range(150)]
    for part in range(4):
        for number, name in enumerate(names):
            await add(server, str(part), conversation=name, log=ShardKeys(number % 4).log)
    async with writing(server, log_dir, shards=4):
        for shard in range(4):
            await drained(server, ShardKeys(shard).log)
    for name in names:
        assert_whole(log_dir, name, ["0", "1", "2", "3"])


async def test_idle_it_asks_little_of_the_server(server: RedisServer, log_dir: Path) -> None:
    async def figure(name: bytes) -> int:
        info: bytes = await server.call("INFO", "everything")
        return int(info.partition(name + b":")[2].split()[0])

    async def reads() -> bool:
        return await figure(b"blocked_clients") == 1

    async with writing(server, log_dir):
        await wait_until(reads, what="the scribe to wait for records")
        before, began = await figure(b"total_commands_processed"), time.monotonic()
        await asyncio.sleep(4.5)  # what is measured is a rate
        used = await figure(b"total_commands_processed") - before - 1
    assert used / (time.monotonic() - began) <= 1.5


async def test_a_conversation_is_followed_into_its_next_session(server: RedisServer, log_dir: Path) -> None:
    await add(server, "1")
    async with writing(server, log_dir):
        await drained(server)
        directory = log_dir / "conversations" / conversation_dir("telegram:42")
        seen = reading.tail(directory, poll=0.01, tz=UTC)
        assert (await anext(seen)).text == "1"
        await add(server, "2")
        assert (await anext(seen)).text == "2"
        await add(server, "3", session=SESSION + 100_000_000)
        assert (await anext(seen)).text == "3"
        await seen.aclose()


async def test_the_logs_command_lists_filters_and_prints(server: RedisServer, log_dir: Path) -> None:
    await add(server, "session of telegram:42 title Ana \x1b[31m")
    await add(server, 'telegram:42/1 "Hello"', word="RECEIVED")
    await add(server, "no route to host", conversation="http:9", word="ERROR")
    async with writing(server, log_dir):
        await drained(server)
    out = Console(file=StringIO(), width=200)
    logs.print_conversations(log_dir, reading.Filters(user="ana"), out, as_json=True, tz=UTC)
    (row,) = [json.loads(line) for line in printed(out).splitlines()]
    assert (row["conversation"], row["title"], row["turns"]) == ("telegram:42", "Ana \x1b[31m", 1)
    logs.print_conversations(log_dir, reading.Filters(errors=True), out, tz=UTC)
    assert "ERROR: no route to host" in printed(out) and "telegram:42" not in printed(out)
    logs.print_records(log_dir, "telegram:42", reading.Filters(grep="Hel+o"), out, tz=UTC)
    assert printed(out).endswith('RECEIVED: telegram:42/1 "Hello"\n')


def printed(console: Console) -> str:
    """What the console was given since it was last asked."""
    assert isinstance(console.file, StringIO)
    text = console.file.getvalue()
    console.file = StringIO()
    return text
