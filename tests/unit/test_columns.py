"""Rows in columns."""

from __future__ import annotations

from rolecall.cli.output import columns


def test_columns_are_as_wide_as_their_widest_cell_and_numbers_end_together() -> None:
    assert columns([("role", "n", "from"), ("samplellm", 12, "x"), ("a", 3, "")], right=(1,)) == [
        "role        n  from",
        "samplellm  12  x",
        "a           3",
    ]


def test_letters_that_take_two_columns_are_counted_as_two() -> None:
    assert columns([("你好", "x"), ("ab", "y")]) == ["你好  x", "ab    y"]


def test_no_rows_are_no_lines() -> None:
    assert columns([]) == []
