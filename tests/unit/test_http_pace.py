"""How many requests one caller may have open, and how fast more may follow."""

from __future__ import annotations

from rolecall.frontends.http.guard import RateLimit


def test_a_caller_has_so_many_requests_at_once_and_others_are_not_concerned() -> None:
    pace = RateLimit(2, 60_000)
    assert [pace.enter("ann") for _ in range(3)] == [None, None, 1]
    assert pace.enter("ben") is None
    pace.leave("ann")
    assert pace.enter("ann") is None


def test_a_caller_is_told_when_the_next_request_is_welcome() -> None:
    now = 0.0
    pace = RateLimit(100, 60, lambda: now)
    assert [pace.enter("ann") for _ in range(7)] == [None] * 6 + [1]
    now = 1.0
    assert [pace.enter("ann") for _ in range(2)] == [None, 1]
