"""Fallback: who speaks when the first cannot."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from rolecall.errors import (
    ContextTooLong,
    ModelError,
    ModelRefused,
    ModelTimeout,
    ModelUnauthorised,
    ModelUnavailable,
    NotNow,
    QuotaTooSmall,
    RateLimited,
    Truncated,
)
from rolecall.models import Delta, Done, Message, Model, ModelEvent, Request, Spoke
from rolecall.models.fallback import Fallback, preferring
from rolecall.models.providers.echo import EchoModel

HELLO = Request((Message("user", "Hello"),))


class Failing:
    """A model that says ``words`` and then fails with ``error``."""

    def __init__(self, error: ModelError, *words: str) -> None:
        self.name = "failing@test"
        self.error = error
        self.words = words
        self.asked: list[Request] = []
        self.closed = False

    async def stream(self, request: Request) -> AsyncIterator[ModelEvent]:
        self.asked.append(request)
        for word in self.words:
            yield Delta(word)
        raise self.error

    async def aclose(self) -> None:
        self.closed = True


async def heard(model: Model, request: Request = HELLO) -> list[ModelEvent]:
    return [event async for event in model.stream(request)]


async def test_the_first_model_speaks_and_is_named() -> None:
    events = await heard(Fallback([EchoModel("a@test"), EchoModel("b@test")]))
    assert events[:2] == [Spoke("a@test"), Delta("echo: Hello")]
    assert isinstance(events[-1], Done)


@pytest.mark.parametrize(
    "error",
    [ModelUnavailable("x"), ModelTimeout("x"), RateLimited("x"), ModelUnauthorised("x"), Truncated("x")],
    ids=lambda error: type(error).__name__,
)
async def test_the_next_model_speaks_when_one_fails_before_its_first_word(error: ModelError) -> None:
    events = await heard(Fallback([Failing(error), EchoModel("b@test")]))
    assert events[:2] == [Spoke("b@test", "x"), Delta("echo: Hello")]


async def test_a_model_that_stands_in_is_logged_once_with_the_reason(caplog: pytest.LogCaptureFixture) -> None:
    failing = Failing(RateLimited("a@test: wait"))
    fallback = Fallback([failing, EchoModel("b@test")])
    for error in (
        failing.error,
        NotNow("a@test: no connection", 1),
        ModelUnauthorised("a@test: refuses the key (401)"),
    ):
        failing.error = error
        await heard(fallback)
    assert caplog.messages == ["b@test answers: a@test: no connection"]


async def test_nothing_is_repeated_after_the_first_word() -> None:
    words: list[ModelEvent] = []
    with pytest.raises(Truncated):
        async for event in Fallback([Failing(Truncated("cut", "Hel"), "Hel"), EchoModel()]).stream(HELLO):
            words.append(event)
    assert words == [Spoke("failing@test"), Delta("Hel")]


async def test_a_refused_request_goes_to_no_other_model() -> None:
    second = Failing(ModelUnavailable("never asked"))
    with pytest.raises(ModelRefused, match="too long"):
        await heard(Fallback([Failing(ModelRefused("too long")), second]))
    assert second.asked == []


async def test_a_request_larger_than_a_quota_goes_to_the_next_model_and_else_is_too_long() -> None:
    large = Failing(QuotaTooSmall("too large", 9, 6))
    assert (await heard(Fallback([large, EchoModel("b@test")])))[0] == Spoke("b@test", "too large")
    with pytest.raises(ContextTooLong, match="too large") as caught:
        await heard(Fallback([Failing(ModelUnavailable("x")), large, Failing(RateLimited("y", 9))]))
    assert (caught.value.tokens, caught.value.limit) == (9, 6)


async def test_when_all_only_ask_to_wait_the_shortest_wait_counts() -> None:
    models = [Failing(RateLimited("a", 9)), Failing(RateLimited("b")), Failing(RateLimited("c", 4))]
    with pytest.raises(RateLimited, match="a; b; c") as caught:
        await heard(Fallback(models))
    assert caught.value.retry_after == 4


@pytest.mark.parametrize(
    ("errors", "expected"),
    [
        ((RateLimited("a", 9), ModelUnauthorised("b")), ModelUnavailable),
        ((ModelTimeout("a"), ModelUnavailable("b")), ModelUnavailable),
        ((ModelUnauthorised("a"), ModelUnauthorised("b")), ModelUnauthorised),
    ],
)
async def test_when_none_can_answer_the_error_says_whether_one_may_later(
    errors: tuple[ModelError, ...], expected: type[ModelError]
) -> None:
    with pytest.raises(ModelError, match="a; b") as caught:
        await heard(Fallback([Failing(error) for error in errors]))
    assert type(caught.value) is expected


async def test_the_time_is_for_all_models_together() -> None:
    slow = EchoModel("slow@test", delay=5)
    last = Failing(ModelUnavailable("x"))
    with pytest.raises(ModelUnavailable):
        await heard(Fallback([slow, last]), Request(HELLO.messages, timeout=0.05))
    assert last.asked[0].timeout == pytest.approx(0, abs=0.04)


async def test_closing_closes_every_model() -> None:
    models = [Failing(ModelUnavailable("x")), Failing(ModelUnavailable("y"))]
    await Fallback(models).aclose()
    assert all(model.closed for model in models)


async def test_a_model_that_was_chosen_is_asked_first_and_the_usual_ones_when_it_cannot() -> None:
    usual = Fallback([EchoModel("a@test"), EchoModel("b@test")])
    assert (await heard(preferring(EchoModel("b@test"), usual)))[0] == Spoke("b@test")
    assert (await heard(preferring(Failing(ModelUnavailable("no")), usual)))[0] == Spoke("a@test", "no")
