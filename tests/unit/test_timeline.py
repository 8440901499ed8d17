"""A turn's records as bars."""

from __future__ import annotations

from msgspec.structs import replace

from rolecall.transcripts.record import Record
from rolecall.transcripts.timeline import HANDLING, MODEL, WAIT, Hop, bar, bars, timelines, tree_bars, trees


def record(since: int, instance: str, word: str, text: str = "", turn: str = "17") -> Record:
    ms = 1_795_300_000_000 + since
    return Record(ms=ms, since=since, turn=turn, instance=instance, word=word, text=text, id=f"{ms}-0")


MANAGER, SAMPLE, OTHER = "manager:m4:1:1", "samplellm:m4:1:2", "samplellm:m5:9:1"
ANSWERED = [
    record(0, "terminal:m4:1:0", "RECEIVED", 'telegram:42/17 "Hello"'),
    record(10, MANAGER, "STARTED", "hop 0"),
    record(12, MANAGER, "SENT", "to role stream samplellm"),
    record(1012, SAMPLE, "STARTED", "hop 1"),
    record(4012, SAMPLE, "PROCESSING_COMPLETE", "reply 212 chars, smollm2@local, 31 tokens in, 48 out, model 2.000 s"),
    record(4100, "terminal:m4:1:0", "DELIVERED"),
]


def test_each_hop_has_its_wait_its_handling_and_its_model_time() -> None:
    (turn,) = timelines(ANSWERED)
    assert (turn.turn, turn.said, turn.state, turn.total) == ("17", '"Hello"', "delivered", 4100)
    manager, sample = turn.hops
    assert (manager.role, manager.wait, manager.handling, manager.model) == ("manager", 10, 2, 0)
    assert (sample.role, sample.wait, sample.handling, sample.model) == ("samplellm", 1000, 3000, 2000)
    assert sample.number == 1


def test_a_number_that_is_given_once_more_is_another_turn() -> None:
    later = [replace(one, ms=one.ms + 86_400_000) for one in (*ANSWERED, record(5, SAMPLE, "STARTED", turn="17.1"))]
    joined = record(1, "terminal:m4:1:0", "RECEIVED", "joins")
    tree = trees([*ANSWERED[:1], joined, *ANSWERED[1:], record(9000, MANAGER, "STARTED", turn="18"), *later], 2)
    assert [[turn.turn for turn in turns] for turns in tree] == [["18"], ["17", "17.1"]]
    assert [hop.wait for hop in tree[1][0].hops] == [10, 1000]
    assert tree[1][0].ms == later[0].ms


def used(word: str, text: str) -> tuple[str, int, int, float, int]:
    (turn,) = timelines([*ANSWERED[:4], record(9012, SAMPLE, word, text)])
    hop = turn.hops[-1]
    return hop.models, hop.tokens_in, hop.tokens_out, hop.cost, hop.model


def test_each_hop_has_the_models_that_it_asked_with_their_tokens_and_cost() -> None:
    two = "a@openai + b/c@remote, 1031 tokens in, 48 out, cost 0.002100, model 2.000 s"
    expected = ("a@openai + b/c@remote", 1031, 48, 0.0021, 2000)
    assert used("PROCESSING_COMPLETE", f'reply 9 chars, {two}: "model 7.000 s, 5 tokens in"') == expected
    assert used("SENT", f"to role stream critic, {two}") == expected
    assert used("SUSPENDED", f'waits for an answer to "Pay 9 €, now?", {two}') == expected
    assert used("SENT", "to role stream critic") == ("", 0, 0, 0.0, 0)
    assert used("PROCESSING_COMPLETE", 'reply 44 chars: "it says: \\"x, model 7.000 s\\""') == ("", 0, 0, 0.0, 0)


def test_the_record_of_version_0_1_is_read_as_well() -> None:
    text = 'reply 212 chars, 48 tokens, smollm2@local, model 2.000 s: "Paris."'
    assert used("PROCESSING_COMPLETE", text) == ("smollm2@local", 0, 48, 0.0, 2000)


def test_a_bar_shows_waiting_handling_and_model_in_proportion() -> None:
    hop = Hop(1, SAMPLE, queued=1000, started=2000, ended=5000, model=2000)
    assert bar(hop, 10_000, 10) == " " + WAIT + HANDLING + MODEL * 2 + " " * 5


def test_a_hop_too_short_for_a_column_is_still_seen() -> None:
    hop = Hop(0, MANAGER, queued=9999, started=9999, ended=10_000)
    assert bar(hop, 10_000, 10) == " " * 9 + HANDLING
    assert bar(Hop(0, MANAGER, 0, 0, 0), 0, 10) == HANDLING + " " * 9


def test_all_bars_of_a_turn_are_of_one_width_and_say_their_times() -> None:
    head, manager, sample = bars(timelines(ANSWERED)[0], 40)
    assert head == 'turn 17  "Hello"  delivered, 4.100 s'
    assert manager.index("waited") == sample.index("waited")
    assert sample.endswith("waited 1.000 s, handled 3.000 s, model 2.000 s (smollm2@local, 31 tokens in, 48 out)")


def test_a_hop_taken_over_ends_there_and_another_instance_goes_on() -> None:
    (turn,) = timelines(
        [
            record(0, "http:m4:1:0", "RECEIVED", 'http:1/17 "x"'),
            record(5, SAMPLE, "STARTED", "hop 0"),
            record(15_005, OTHER, "TAKEN_OVER", "hop 0 attempt 2 from m4:1"),
            record(16_005, OTHER, "PROCESSING_COMPLETE", "reply 1 chars"),
        ]
    )
    lost, won = turn.hops
    assert (lost.word, lost.handling) == ("TAKEN_OVER", 15_000)
    assert (won.number, won.instance, won.wait, won.handling) == (0, OTHER, 0, 1000)
    assert "taken over" in bars(turn)[1]


def test_retries_and_deferrals_show_the_time_between_as_waiting() -> None:
    (turn,) = timelines(
        [
            record(0, "http:m4:1:0", "RECEIVED", 'http:1/17 "x"'),
            record(0, SAMPLE, "STARTED", "hop 0"),
            record(100, SAMPLE, "DEFERRED", "in 5.0 s: no provider answers"),
            record(5100, SAMPLE, "STARTED", "hop 0"),
            record(5200, SAMPLE, "DEAD_LETTER", "three deliveries"),
        ]
    )
    assert [hop.wait for hop in turn.hops] == [0, 5000]
    assert turn.state == "given up"


def test_turns_are_told_apart_and_one_that_runs_says_so() -> None:
    waiting = [
        record(0, "http:m4:1:0", "RECEIVED", 'http:1/18 "y"', "18"),
        record(0, "http:m4:1:0", "NOTE", "waits, place 1", "18"),
    ]
    first, second = timelines([*ANSWERED[:4], *waiting, *ANSWERED[4:]])
    assert (first.turn, second.turn) == ("17", "18")
    assert (second.state, second.hops) == ("running", [])
    assert timelines([record(0, "", "NOTE", "session of x title -", "")]) == []


def test_words_and_texts_it_does_not_know_are_no_trouble() -> None:
    (turn,) = timelines(
        [record(0, "", "SENT", "?"), record(1, "", "STARTED", "again"), record(2, "", "NOTE", "model s")]
    )
    assert [(hop.number, hop.ended) for hop in turn.hops] == [(0, 2)]


def test_calls_stand_indented_under_their_turn_on_its_scale_of_time() -> None:
    def call(turn: str, after: int, instance: str, lasting: int) -> list[Record]:
        made = [
            record(0, SAMPLE, "RECEIVED", f'a/{turn} "part"', turn),
            record(0, instance, "STARTED", "hop 0", turn),
            record(lasting, instance, "PROCESSING_COMPLETE", "reply 3 chars", turn),
        ]
        return [replace(one, ms=one.ms + after) for one in made]

    records = [
        record(0, "terminal:m4:1:0", "RECEIVED", 'a/17 "Hello"'),
        record(0, SAMPLE, "STARTED", "hop 0"),
        record(1000, SAMPLE, "SUSPENDED", "waits for a reply of other ×2"),
        *call("17.1", 1000, OTHER, 1000),
        *call("17.1.1", 1500, MANAGER, 500),
        *call("17.2", 2000, OTHER, 2000),
        record(4000, SAMPLE, "RESUMED", "hop 0"),
        record(4000, SAMPLE, "PROCESSING_COMPLETE", "reply 3 chars"),
    ]
    (tree,) = trees([record(0, "", "RECEIVED", "", "16"), *records], 1)
    lines = tree_bars(tree, 8)
    assert [line.partition("  ")[0] for line in lines[:1]] == ["turn 17"]
    first, nested, second = (next(n for n, line in enumerate(lines) if f"call {turn} " in line)
                             for turn in ("17.1", "17.1.1", "17.2"))  # fmt: skip
    assert (first, nested, second) == (3, 5, 7)
    assert lines[first] == '  call 17.1  "part"  answered, 1.000 s'
    assert lines[nested].startswith("    call 17.1.1")
    assert f"  {' ' * 2}{HANDLING * 2}{' ' * 4}  " in lines[first + 1]
    assert f"  {' ' * 4}{HANDLING * 4}  " in lines[second + 1]
    assert {line.index("waited") for line in lines if "waited" in line} == {lines[1].index("waited")}
    assert "suspended" in lines[1] and WAIT * 6 in lines[2]
