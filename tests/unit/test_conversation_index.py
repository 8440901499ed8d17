"""The index of conversations: what it lists and finds is what the transcripts say, whoever wrote them and when.

``ROLECALL_CONVERSATIONS=10000`` measures that many.
"""

from __future__ import annotations

import os
import sqlite3
import time
from collections.abc import Iterable
from contextlib import closing
from datetime import UTC
from pathlib import Path

import pytest

from rolecall.bus.turn import FORGET
from rolecall.transcripts import conversation_index
from rolecall.transcripts.conversation_index import TABLES, VERSION, Summaries, index_path
from rolecall.transcripts.files import LogEntry, TranscriptFiles
from rolecall.transcripts.reading import Filters, conversations
from rolecall.transcripts.record import Record, conversation_dir

MANY = int(os.environ.get("ROLECALL_CONVERSATIONS", "0"))
MS = 1_795_246_462_000
numbers = iter(range(1, 10**9))


def entry(conversation: str, word: str, text: str, ms: int = MS) -> LogEntry:
    made = Record(ms=ms, since=0, turn="1", instance="a:h:1:1", word=word, text=text, id=f"{ms}-{next(numbers)}")
    return LogEntry(conversation, MS, made)


def begun(conversation: str, title: str, said: str, ms: int = MS) -> list[LogEntry]:
    named = entry(conversation, "NOTE", f"session of {conversation} title {title}", ms)
    return [named, entry(conversation, "RECEIVED", f'{conversation}/1 "{said}"', ms)]


@pytest.fixture
def files(tmp_path: Path) -> Iterable[TranscriptFiles]:
    files = TranscriptFiles(tmp_path / "log", UTC)
    files.write(begun("telegram:42", "Ann Lee", "Where is the Eiffel Tower?"))
    files.write([*begun("http:local:a", "local", "100% sure_thing", MS + 1000)])
    files.write([entry("http:local:a", "DEAD_LETTER", "three deliveries", MS + 2000)])
    yield files
    files.close()


@pytest.fixture
def index(tmp_path: Path, files: TranscriptFiles) -> Iterable[Summaries]:
    index = Summaries(tmp_path / "log", UTC, tmp_path / "index.sqlite")
    yield index
    index.close()


def found(index: Summaries, **filters: object) -> list[str]:
    return [row.conversation for row in index.find(Filters(**filters))]  # type: ignore[arg-type]


def kept(path: Path) -> int:
    with closing(sqlite3.connect(path)) as database:
        count: int = database.execute("SELECT count(*) FROM conversations").fetchone()[0]
        return count


def test_it_says_what_the_transcripts_say(tmp_path: Path, index: Summaries) -> None:
    assert index.find(Filters()) == conversations(tmp_path / "log", Filters(), UTC)[::-1]
    row = index.of(tmp_path / "log/conversations" / conversation_dir("telegram:42"))
    assert row is not None and (row.title, row.turns, row.errors) == ("Ann Lee", 1, 0)
    assert index.of(tmp_path / "log/conversations/nobody-1") is None


@pytest.mark.parametrize(
    ("filters", "expected"),
    [
        ({"user": "ann LEE"}, ["telegram:42"]),
        ({"user": "eiffel"}, []),
        ({"search": "eiffel tower"}, ["telegram:42"]),
        ({"search": "ANN"}, ["telegram:42"]),
        ({"search": "re_th"}, ["http:local:a"]),
        ({"search": "0%"}, ["http:local:a"]),
        ({"search": "1%0"}, []),
        ({"search": 'the" OR "sure'}, []),
        ({"search": "deliveries"}, ["http:local:a"]),
        ({"search": "nowhere"}, []),
        ({"errors": True}, ["http:local:a"]),
        ({"errors": True, "since": MS + 2000}, ["http:local:a"]),
        ({"errors": True, "since": MS + 2001}, []),
        ({"since": MS + 1}, ["http:local:a"]),
        ({"user": "local", "search": "tower"}, []),
        ({"search": "RECEIVED"}, ["http:local:a", "telegram:42"]),
        ({"words": "RECEIVED"}, []),
        ({"words": "local"}, []),
        ({"words": "eiffel TOWER"}, ["telegram:42"]),
        ({"words": "0%"}, ["http:local:a"]),
        ({"words": "three deliveries"}, []),
    ],
)
def test_it_finds_by_what_is_asked_for(index: Summaries, filters: dict[str, object], expected: list[str]) -> None:
    assert found(index, **filters) == expected


def test_it_knows_at_once_what_is_written_and_erased(index: Summaries, files: TranscriptFiles) -> None:
    assert found(index, search="Louvre") == []
    for number in range(5):  # several within one tick of the file system's clock
        files.write([entry("telegram:42", "NOTE", f"the Louvre {number}", MS + 5000 + number)])
        assert found(index, search=f"Louvre {number}") == ["telegram:42"]
    files.write(begun("http:local:b", "local", "anew", MS + 9000))
    assert found(index) == ["http:local:b", "telegram:42", "http:local:a"]
    files.write([entry("telegram:42", FORGET, "")])
    assert found(index) == ["http:local:b", "http:local:a"]
    assert found(index, search="Louvre") == []


def test_nothing_that_was_erased_is_left_in_its_files(tmp_path: Path, index: Summaries, files: TranscriptFiles) -> None:
    def left(words: bytes) -> bool:
        return any(words in path.read_bytes() for path in tmp_path.glob("index.sqlite*"))

    found(index)
    assert left(b"Eiffel Tower") and left(b"100% sure_thing")
    files.write([entry("telegram:42", FORGET, "")])
    found(index)
    assert not left(b"Eiffel Tower") and left(b"100% sure_thing")
    index.forget(conversation_dir("http:local:a"))  # before the scribe has removed it
    assert not left(b"100% sure_thing")
    assert found(index, search="100% sure_thing") == ["http:local:a"]


def test_what_no_query_can_hold_is_found_nowhere(index: Summaries) -> None:
    for odd in ("sure\0thing", "\0\0\0", "\0"):
        assert found(index, search=odd) == found(index, words=odd) == []


def test_it_is_kept_shared_and_built_anew_where_it_must(
    tmp_path: Path, index: Summaries, files: TranscriptFiles, monkeypatch: pytest.MonkeyPatch
) -> None:
    found(index)
    other = Summaries(tmp_path / "log", UTC, tmp_path / "index.sqlite")
    monkeypatch.setattr("rolecall.transcripts.conversation_index.read_records", None)
    assert found(other) == found(index) == ["http:local:a", "telegram:42"]
    other.close()
    monkeypatch.undo()
    files.write([entry("telegram:42", "NOTE", "the Louvre", MS + 5000)])
    elsewhere = Summaries(tmp_path / "log", None, tmp_path / "index.sqlite")  # another time zone: other lines
    assert found(elsewhere, search="louvre") == ["telegram:42"]
    elsewhere.close()
    index.close()
    (tmp_path / "index.sqlite").write_bytes(b"no database " * 1000)
    broken = Summaries(tmp_path / "log", UTC, tmp_path / "index.sqlite")
    assert found(broken) == ["telegram:42", "http:local:a"]
    broken.close()
    nowhere = Summaries(tmp_path / "log", UTC, tmp_path / "missing/index.sqlite")
    assert found(nowhere) == ["telegram:42", "http:local:a"]
    nowhere.close()
    assert kept(tmp_path / "index.sqlite") == 2


def test_processes_of_two_versions_have_an_index_each_and_the_older_one_is_removed(
    tmp_path: Path, index: Summaries, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as before:  # the tables of the version before, from which this one is upgraded
        before.setattr(conversation_index, "VERSION", VERSION - 1)
        before.setattr(conversation_index, "TABLES", TABLES.replace("fts5 (text, words,", "fts5 (text,"))
        earlier = index_path(tmp_path)
        older = Summaries(tmp_path / "log", UTC, earlier)
    (tmp_path / "conversations.sqlite").touch()  # as it was called once
    newer = Summaries(tmp_path / "log", UTC, index_path(tmp_path))
    assert found(newer, words="Eiffel") == found(index, words="Eiffel") == ["telegram:42"]
    assert [path.name for path in tmp_path.glob("conversations*.sqlite")] == [index_path(tmp_path).name]
    older.close()
    newer.close()


@pytest.mark.skipif(not MANY, reason="ROLECALL_CONVERSATIONS says how many")
@pytest.mark.timeout(1800)
def test_ten_thousand_are_listed_and_searched_in_a_third_of_a_second(tmp_path: Path) -> None:
    files = TranscriptFiles(tmp_path / "log", UTC)
    for start in range(0, MANY, 50):
        files.write([
            one for number in range(start, min(MANY, start + 50))
            for one in begun(f"http:local:{number}", f"user {number}", f"What is number {number}? " * 20, MS + number)
        ])  # fmt: skip
    index = Summaries(tmp_path / "log", UTC, tmp_path / "index.sqlite")
    times = {}
    for name, filters in {
        "first of all": Filters(), "list": Filters(), "search": Filters(search=f"number {MANY - 1}?"),
        "search by two letters": Filters(search="7?"), "errors": Filters(errors=True),
    }.items():  # fmt: skip
        began = time.perf_counter()
        rows = index.find(filters)
        times[name] = time.perf_counter() - began
        print(f"{name}: {len(rows)} in {times[name] * 1000:,.0f} ms")
    files.write([entry("http:local:7", "NOTE", "one more", MS + MANY)])
    began = time.perf_counter()
    assert index.find(Filters())[0].conversation == "http:local:7"
    print(f"after a change: {(time.perf_counter() - began) * 1000:,.0f} ms")
    assert max(times["list"], times["search"]) < 0.3
