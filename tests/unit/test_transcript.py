"""Transcript lines, names and reading, without a server."""

from __future__ import annotations

import unicodedata
from contextlib import closing
from datetime import UTC, datetime, timedelta, tzinfo
from pathlib import Path
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rolecall.bus.envelope import short_turn_id
from rolecall.cli.logs import make_filters
from rolecall.errors import ConfigError, RolecallError
from rolecall.transcripts.conversation_index import Summaries
from rolecall.transcripts.files import LogEntry, TranscriptFiles
from rolecall.transcripts.reading import Filters, conversations, since
from rolecall.transcripts.record import (
    EPOCH,
    HIDDEN_CATEGORIES,
    LAST_MS,
    Record,
    conversation_dir,
    escape,
    find,
    format_line,
    parse_line,
    read_records,
    records,
    session_file,
    session_files,
    unescape,
    visible,
)
from rolecall.transcripts.words import WORDS

BERLIN = ZoneInfo("Europe/Berlin")
MS = 1_795_300_215_123
ANY_TEXT = st.text(st.characters())  # lone surrogates included
AWKWARD = st.text(st.sampled_from("  ~-17\\nx[]:\n\r\u2028\u202e\ud800é你\x1b"))


def record(word: str = "NOTE", text: str = "", *, turn: str = "17", ms: int = MS, number: int = 0) -> Record:
    return Record(
        ms=ms,
        since=max(0, ms - MS),
        turn=turn,
        instance="manager:m4:12345:1",
        word=word,
        text=text,
        id=f"{ms}-{number}",
    )


def at(month: int, day: int, hour: int = 0, minute: int = 0) -> int:
    return (datetime(2026, month, day, hour, minute, tzinfo=UTC) - EPOCH) // timedelta(milliseconds=1)


def test_a_line_has_the_columns_that_people_and_simple_parsers_know() -> None:
    line = format_line(record("RECEIVED", 'telegram:42/17 "Hello"'), UTC)
    assert line == (
        f'[2026-11-21 22:30:15.123] [  0.000s] [manager:m4:12345:1] RECEIVED: telegram:42/17 "Hello"  ~17 {MS}-0'
    )
    assert visible(line).endswith('RECEIVED: telegram:42/17 "Hello"')


@given(
    ms=st.integers(0, LAST_MS),
    since=st.integers(0, 10**9),
    turn=st.one_of(st.just("17"), ANY_TEXT, AWKWARD),
    instance=st.one_of(ANY_TEXT, AWKWARD),
    word=st.sampled_from(sorted(WORDS)),
    text=st.one_of(ANY_TEXT, AWKWARD),
    number=st.integers(0, 10**6),
    tz=st.sampled_from([UTC, BERLIN, ZoneInfo("Asia/Kathmandu"), None]),
)
def test_a_line_gives_back_its_record_and_is_one_harmless_line(
    ms: int, since: int, turn: str, instance: str, word: str, text: str, number: int, tz: tzinfo | None
) -> None:
    made = Record(ms=ms, since=since, turn=turn, instance=instance, word=word, text=text, id=f"{ms}-{number}")
    line = format_line(made, tz)
    assert parse_line(line, tz) == made
    assert len(line.splitlines()) == 1
    assert not {unicodedata.category(char) for char in line} & HIDDEN_CATEGORIES
    assert line.count("  ~") == 1 or "  ~" in instance
    line.encode()


@given(ANY_TEXT)
def test_escaping_is_undone_exactly(text: str) -> None:
    assert unescape(escape(text)) == text


def test_letters_of_every_script_stay_as_they_are() -> None:
    text = "Привет, 你好, مرحبا, שלום, नमस्ते, ありがとう, é, 🙂 – „so“"
    assert escape(text) == text


@pytest.mark.parametrize("text", ["x  ~9 9999999999999-9", " ~9 9999999999999-9"])
def test_a_text_that_looks_like_the_tail_forges_none(text: str) -> None:
    line = format_line(record(text=text), UTC)
    found = parse_line(line, UTC)
    assert found is not None and (found.turn, found.id) == ("17", f"{MS}-0")
    assert line.count("  ~") == 1


@pytest.mark.parametrize(
    "line",
    [
        "",
        "hello",
        "[2026-11-21 22:30:15.123] [  0.000s] [a] NOTE: cut",
        "[2026-99-21 22:30:15.123] [  0.000s] [a] NOTE: x  ~1 1-1",
    ],
)
def test_what_is_no_line_is_none_and_raises_nothing(line: str) -> None:
    assert parse_line(line, UTC) is None


def test_the_hour_that_comes_twice_is_told_apart_by_the_entry_id() -> None:
    for fold in (0, 1):
        ms = int(datetime(2026, 10, 25, 2, 30, tzinfo=BERLIN, fold=fold).timestamp() * 1000)
        found = parse_line(format_line(record(ms=ms), BERLIN), BERLIN)
        assert found is not None and found.ms == ms


def test_a_session_lies_in_its_day_and_second_of_the_given_zone() -> None:
    name = conversation_dir("telegram:42")
    assert str(session_file("telegram:42", MS, UTC)) == f"{name}/2026.11.21/22:30:15.log"
    assert str(session_file("telegram:42", MS + 3_600_000, BERLIN)) == f"{name}/2026.11.22/00:30:15.log"
    assert str(session_file("telegram:42", MS, UTC, generation=2)) == f"{name}/2026.11.21/22:30:15.2.log"


@given(st.one_of(ANY_TEXT, st.sampled_from(["../../x", "/", "\0", "..", "x" * 5000, "\uff0f"])))
def test_a_conversations_directory_is_a_plain_short_name(conversation: str) -> None:
    name = conversation_dir(conversation)
    assert len(name) <= 79 and name not in (".", "..")
    assert all(char.isascii() and (char.isalnum() or char in "_-") for char in name)


@given(st.lists(ANY_TEXT, unique=True, max_size=8))
def test_no_two_conversations_share_a_directory_whatever_their_case(names: list[str]) -> None:
    both = {variant for name in names for variant in (name, name.swapcase())}
    assert len({conversation_dir(name).casefold() for name in both}) == len(both)


@pytest.fixture
def log_dir(tmp_path: Path) -> Path:
    """Two conversations: one of two turns in two sessions, one that failed."""
    day = 86_400_000
    files = TranscriptFiles(tmp_path, UTC)
    files.begin("a")
    entries = [
        (MS, record("NOTE", "session of telegram:42 title Ana title Bo", turn="1")),
        (MS, record("RECEIVED", 'telegram:42/1 "Hello"', turn="1", number=1)),
        (MS, record("PROCESSING_COMPLETE", "reply 3 chars", turn="1", ms=MS + 1000)),
        (MS + day, record("RECEIVED", 'telegram:42/2 "More"', turn="2", ms=MS + day)),
    ]
    files.write(LogEntry("telegram:42", session, made) for session, made in entries)
    files.write([LogEntry("http:a/b title c", MS, record("RECEIVED", 'http:a/b title c/1 "Hi"', turn="1"))])
    files.write([LogEntry("http:a/b title c", MS, record("DEAD_LETTER", "three deliveries", turn="1", ms=MS + 5))])
    files.close()
    return tmp_path


def test_writing_again_what_is_there_changes_nothing(log_dir: Path) -> None:
    (file,) = session_files(log_dir / "conversations" / conversation_dir("http:a/b title c"))
    before = file.read_bytes()
    files = TranscriptFiles(log_dir, UTC)
    files.begin("a")
    files.write([LogEntry("http:a/b title c", MS, record("RECEIVED", "again", turn="1"))])
    files.close()
    assert file.read_bytes() == before


def test_conversations_are_listed_with_what_people_look_for(log_dir: Path) -> None:
    failed, chat = conversations(log_dir, Filters(), UTC)
    assert (chat.conversation, chat.title, chat.turns, chat.errors) == ("telegram:42", "Ana title Bo", 2, 0)
    assert (failed.conversation, failed.title, failed.turns, failed.errors) == ("http:a/b title c", "", 1, 1)
    assert chat.first == MS and chat.last == MS + 86_400_000
    assert failed.line.endswith("DEAD_LETTER: three deliveries")


@pytest.mark.parametrize(
    ("filters", "names"),
    [
        (Filters(user="aNA"), ["telegram:42"]),
        (Filters(user="a/b"), ["http:a/b title c"]),
        (Filters(since=MS + 10_000), ["telegram:42"]),
        (Filters(errors=True), ["http:a/b title c"]),
        (Filters(grep="Mo+re"), ["telegram:42"]),
        (Filters(grep="nothing such"), []),
    ],
)
def test_filters_choose_conversations(log_dir: Path, filters: Filters, names: list[str]) -> None:
    assert [found.conversation for found in conversations(log_dir, filters, UTC)] == names


def test_a_conversation_is_read_across_its_sessions_and_a_turn_alone(log_dir: Path) -> None:
    assert [found.turn for found in records(log_dir, "telegram:42", UTC)] == ["1", "1", "1", "2"]
    assert records(log_dir, conversation_dir("telegram:42"), UTC) == records(log_dir, "telegram:42", UTC)
    (only,) = records(log_dir, short_turn_id("telegram:42", "2"), UTC)
    assert only.text == 'telegram:42/2 "More"'


def test_calls_belong_to_their_turn_and_count_as_none(log_dir: Path) -> None:
    files = TranscriptFiles(log_dir, UTC)
    files.begin("a")
    ms = MS + 86_400_001
    calls = [record("RECEIVED", turn=turn, ms=ms, number=n) for n, turn in enumerate(("2.1", "2.1.1", "2.2"))]
    files.write(LogEntry("telegram:42", MS + 86_400_000, call) for call in calls)
    files.close()
    found = {turn: [one.turn for one in records(log_dir, short_turn_id("telegram:42", turn), UTC)]
             for turn in ("2", "2.1", "1.1")}  # fmt: skip
    assert found == {"2": ["2", "2.1", "2.1.1", "2.2"], "2.1": ["2.1", "2.1.1"], "1.1": []}
    with closing(Summaries(log_dir, UTC)) as summaries:
        for (row,) in (conversations(log_dir, Filters(user="ana"), UTC), summaries.find(Filters(user="ana"))):
            assert row.turns == 2


def test_a_conversation_that_is_not_there_is_named_with_what_to_do(log_dir: Path) -> None:
    with pytest.raises(RolecallError, match=r"no transcript of 'telegram:4'.*rolecall logs"):
        find(log_dir, "telegram:4")
    with pytest.raises(RolecallError, match="no transcript"):
        records(log_dir, "ffffff-1", UTC)


def test_a_line_still_being_written_and_lines_of_others_are_left_out(log_dir: Path) -> None:
    directory = log_dir / "conversations" / conversation_dir("telegram:42")
    file = session_files(directory)[-1]
    with file.open("a") as more:
        more.write("scribbled by hand\n[2026-11-22 22:30:15.123] [  0.0")
    assert len(list(read_records(directory, UTC))) == 4


def test_since_takes_an_age_a_day_or_a_moment() -> None:
    now = datetime(2026, 11, 21, 12, tzinfo=UTC)
    assert since("2h", now) == at(11, 21, 10)
    assert since("7d", now) == at(11, 14, 12)
    assert since("2026-11-21", now, UTC) == at(11, 21)
    assert since("2026-11-21", now, BERLIN) == at(11, 20, 23)
    assert since("2026-11-21 08:30", now, UTC) == at(11, 21, 8, 30)


@pytest.mark.parametrize(
    ("options", "named"), [(("", "soon", False, ""), "--since soon"), (("", "", False, "("), "--grep")]
)
def test_a_bad_filter_is_refused_by_name(options: tuple[str, str, bool, str], named: str) -> None:
    with pytest.raises(ConfigError, match=named):
        make_filters(*options, UTC)
