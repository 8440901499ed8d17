"""What `rolecall demo` makes of the turns it saw."""

from __future__ import annotations

from rolecall.cli.demo import HandledTurn, Load, draw, reservation, verdict


def turn(name: str, accepted: int, started: int, ended: int, instance: str = "samplellm:host:1:0") -> HandledTurn:
    return HandledTurn(name, instance, accepted, started, ended)


def test_two_turns_handled_at_the_same_moment_are_concurrent() -> None:
    assert verdict([turn("a", 0, 0, 1000), turn("b", 0, 999, 2000)]) == "CONCURRENT"


def test_turns_that_follow_each_other_are_sequential_even_if_they_wait_together() -> None:
    assert verdict([turn("a", 0, 0, 1000), turn("b", 0, 1000, 2000), turn("c", 0, 2000, 3000)]) == "SEQUENTIAL"


def test_one_turn_alone_is_sequential() -> None:
    assert verdict([turn("a", 0, 0, 1000)]) == "SEQUENTIAL"


def test_quick_answers_that_follow_each_other_say_little_about_the_server() -> None:
    quick, slow = ([turn("a", 0, 0, ms), turn("b", 0, ms, 2 * ms)] for ms in (20, 1000))
    assert reservation(quick, users=2) == "; the answers were too quick to overlap"
    assert reservation(slow, users=2) == reservation(quick, users=1) == ""


def test_the_ideal_is_full_rounds_of_all_instances() -> None:
    assert Load(users=6, messages=1, instances=6, delay=3).ideal == 3
    assert Load(users=7, messages=1, instances=6, delay=3).ideal == 6
    assert Load(users=6, messages=1, instances=2, delay=3).ideal == 9


def test_the_ideal_knows_that_one_user_s_messages_follow_each_other() -> None:
    assert Load(users=1, messages=4, instances=6, delay=2).ideal == 8


def test_each_turn_is_a_bar_over_the_same_time_axis_with_its_instance() -> None:
    second = turn("user 2", 0, 1000, 2000, "samplellm:host:1:1")
    lines = draw([second, turn("user 1", 0, 0, 1000)], 100)
    assert lines[0].startswith("user 1  samplellm:host:1:0  ████")
    assert lines[1].startswith("user 2  samplellm:host:1:1  ░░░░")
    assert lines[0].endswith("waited 0.00 s, handled 1.00 s")
    assert lines[1].endswith("waited 1.00 s, handled 1.00 s")
    assert abs(lines[0].count("█") - lines[1].count("█")) <= 1
    assert lines[0].index("█") == lines[1].index("░")
    assert max(map(len, lines)) <= 100


def test_a_narrow_screen_still_shows_bars() -> None:
    assert "█" in draw([turn("user 1", 0, 0, 1000)], 20)[0]
