"""A conversation as its user sees it, from history and transcript."""

from __future__ import annotations

from rolecall.bus.conversation import REPLACES, HistoryEntry
from rolecall.bus.turn import CLEARED
from rolecall.frontends.http.web.thread import exchanges
from rolecall.transcripts.record import Record, unquoted


def record(turn: str, since: int, word: str, text: str, instance: str = "manager:h:1:0") -> Record:
    at = 1_000_000 * int(turn or 0) + since
    return Record(ms=at, since=since, turn=turn, instance=instance, word=word, text=text, id=f"{at}-0")


def turn(number: str, said: str, answer: str) -> list[Record]:
    return [
        record(number, 0, "RECEIVED", f'http:a:b/{number} "{said}"'),
        record(number, 1, "STARTED", "hop 0"),
        record(number, 2, "SENT", "to role stream samplellm"),
        record(number, 3, "STARTED", "hop 1", "samplellm:h:1:0"),
        record(number, 9, "PROCESSING_COMPLETE", f'reply 3 chars, echo@test: "{answer}"', "samplellm:h:1:0"),
    ]


def test_the_transcript_tells_what_the_history_no_longer_has() -> None:
    old, new = exchanges(
        [*turn("1", "one", "yes"), *turn("2", "two", "no")],
        [
            HistoryEntry("user", "two", "2", said="/write two"),
            HistoryEntry("assistant", "no", "2", model="m", tokens=4),
        ],
    )
    assert (old.said, old.answer, old.roles, old.ms) == ("one", "yes", ["manager", "samplellm"], 9)
    assert (new.said, new.answer, new.model, new.tokens) == ("/write two", "no", "m", 4)


def test_what_is_no_markdown_is_known_as_such_by_the_transcript_too() -> None:
    said, plain, markdown = record("1", 0, "RECEIVED", 'http:a:b/1 "x"'), "plain reply 5 chars", "reply 5 chars"
    for words, expected in ((plain, True), (markdown, False)):
        (one,) = exchanges([said, record("1", 9, "PROCESSING_COMPLETE", f'{words}: "*x*: y"')], [])
        assert (one.answer, one.plain) == ("*x*: y", expected)


def test_replaced_and_cleared_turns_are_not_shown() -> None:
    records = [*turn("1", "a", "A"), record("", 0, "NOTE", CLEARED), *turn("2", "b", "B"), *turn("3", "c", "C")]
    records += [*turn("4", "d", "D"), *turn("5", "c2", "C2"), record("5", 10, "NOTE", f"{REPLACES}3")]
    assert [one.said for one in exchanges(records, [])] == ["b", "c2"]


def test_failed_and_stopped_turns_and_notices_keep_their_places() -> None:
    entries = [
        HistoryEntry("user", "x", "1", "error"), HistoryEntry("assistant", "Sorry.", "1", "error"),
        HistoryEntry("assistant", "A notice."), HistoryEntry("user", "y", "2", "stopped"),
    ]  # fmt: skip
    failed, notice, stopped = exchanges([], entries)
    assert (failed.state, failed.answer) == ("failed", "Sorry.")
    assert (notice.turn, notice.answer) == ("", "A notice.")
    assert (stopped.state, stopped.answer) == ("cancelled", "")


def test_what_a_schedule_began_was_said_by_nobody() -> None:
    began = record("1", 0, "RECEIVED", 'http:a:b/1 "tea"', "schedule:h:1:0")
    answered = record("1", 9, "PROCESSING_COMPLETE", 'plain reply 5 chars: "⏰ tea"')
    entries = [HistoryEntry("user", "tea", "1", scheduled=True), HistoryEntry("assistant", "⏰ tea", "1", plain=True)]
    for records, remembered in (([began, answered], []), ([], entries), ([began, answered], entries)):
        (one,) = exchanges(records, remembered)
        assert (one.turn, one.said, one.answer, one.plain) == ("1", "", "⏰ tea", True)


def test_quotes_within_a_record_are_the_users_own() -> None:
    assert unquoted(r'"a \"b\" \\ c"') == r'a "b" \ c'
    assert unquoted('"cut off… [9000 characters]') == "cut off… [9000 characters]"
