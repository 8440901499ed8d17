"""The gate in front of a model, shared by all processes: circuit breaker, rate limit, concurrency and budgets.

The breaker opens after consecutive failures; then one call at a time probes the model until one is answered. The rate
limit is a sliding minute of sixty slices; a call that finds it used up books a place in a later slice. Each step is
decided by one script.
"""

from __future__ import annotations

import asyncio
import logging
import random
import secrets
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Literal, TypedDict

from rolecall.background import BackgroundTasks
from rolecall.errors import (
    LogprobsRefused,
    ModelError,
    ModelRefused,
    ModelTimeout,
    ModelUnauthorised,
    ModelUnavailable,
    NoSuchModel,
    NotNow,
    OverBudget,
    RateLimited,
    ServerError,
    Truncated,
    money,
    told,
)
from rolecall.models.model import Caller, Delta, Done, Model, ModelEvent, Request, ToolCall, Usage
from rolecall.models.stream import closing
from rolecall.redis import keys
from rolecall.redis.leader import extend
from rolecall.redis.scripts import milliseconds, script
from rolecall.redis.server import Server
from rolecall.settings import Settings, Terms


class ModelBlock(TypedDict):
    """What ``scripts/lib/model.lua`` declares."""

    state: str
    use: str
    booked: str
    busy: str
    waiting: str
    call: str
    room: int


UNGUARDED = "@test"
"""Models that cannot fail have no gate, and nothing is counted of them; with terms of their own they are as others."""
MODEL_PARTS = ("state", "use", "booked", "busy", "waiting")
PACKAGE = "rolecall.models"
ENTER = script(
    PACKAGE, "scripts/enter", ModelBlock,
    names="ticket tokens rpm tpm minute lease book",
)  # fmt: skip
LEAVE = script(
    PACKAGE, "scripts/leave", ModelBlock,
    names="outcome slice reserved used retry_after breaker_failures why probe_ms expected",
)  # fmt: skip
SPEND = script(PACKAGE, "scripts/spend", names="spent names amounts")
WAIT = script(PACKAGE, "scripts/wait", ModelBlock, names="conversation")
NEXT = script(PACKAGE, "scripts/next", ModelBlock)
logger = logging.getLogger(__name__)
LEASE_SECONDS = 15.0
TOKEN_CHARS = 4
ANSWER_TOKENS = 400
"""Estimated length of an answer without a limit, until measured use of the model corrects it."""
SPEND_SECONDS = 0.5
"""How long what was spent may be known to this process only, if there is no budget."""
MICRO = 1_000_000
Outcome = Literal["ANSWERING", "OK", "FAILED", "AWAY", "LIMITED", "NOTHING"]
Wake = Callable[[str], Coroutine[Any, Any, bool]]
"""Resume the deferred turn of a conversation. False if it no longer sleeps."""
TRIES = 3
PATIENCE_SECONDS = 0.25
"""Wait here up to this long; for a longer wait raise NotNow, so that the caller can defer the turn."""


@dataclass
class Call:
    """A call of a model in flight. It holds ``reserved`` tokens of the quota in ``slice``."""

    id: str
    caller: Caller
    slice: int = -1
    reserved: int = 0
    expected: int = 0
    probe: bool = False
    began: float = 0.0
    asked: int = 0
    """Tokens of the question, estimated."""
    said: int = 0
    """Characters of the answer so far."""
    usage: Usage | None = None
    estimated: bool = False
    """Whether ``usage`` is an estimate, from which the quota learns nothing."""
    holding: asyncio.Task[None] | None = None

    def estimate(self) -> Usage:
        """The tokens so far, of a provider that has not told them."""
        self.usage, self.estimated = Usage(self.asked, -(-self.said // TOKEN_CHARS)), True
        return self.usage


@dataclass(frozen=True)
class Verdict:
    """The effect of a failure: whether the breaker is open now and for how many seconds, and seconds until the next
    probe."""

    away: bool
    after: float
    silent: float


class Gate:
    """Admits calls of the model ``name`` within its ``terms``. Calls ``wake`` for turns that no longer need to wait."""

    def __init__(self, server: Server, name: str, terms: Terms, settings: Settings, wake: Wake) -> None:
        self.name = name
        self.terms = terms
        self._server = server
        self._settings = settings
        self._wake = wake
        self._tasks = BackgroundTasks()
        self._spent: dict[str, int] = {}
        self._closed = asyncio.Event()
        s = settings
        self._budgets = bool(s.user_tokens_per_day or s.user_cost_per_day or s.tokens_per_day or s.cost_per_day)

    async def enter(self, request: Request, *, book: bool) -> Call:
        """Begin a call. Raises OverBudget, and NotNow, with ``book`` after booking a place in the quota."""
        caller = request.caller or Caller("", "")
        call_id = secrets.token_hex(8)
        await self._check_budgets(caller)
        try:
            reply = await self._server.run(ENTER, self._block(call_id), **self._entering(caller, request, book))
        except asyncio.CancelledError:  # it may have been let in
            self._later(self._leave(Call(call_id, caller), "NOTHING"))
            raise
        word = reply[0].decode()
        if word != "GO":
            raise self._not_now(word, reply[1] / 1000, reply[2].decode(), reply[3] / 1000)
        call = Call(
            call_id, caller, int(reply[1]), int(reply[2]), expected_tokens(request), bool(reply[3]), time.monotonic(),
            _tokens_of(request),
        )  # fmt: skip
        call.holding = asyncio.create_task(self._hold(call_id), name=f"hold {self.name}")
        return call

    def answering(self, call: Call) -> None:
        """Report the first token: a probe that gets this far closes the breaker."""
        if call.probe:
            self._later(self._tell(call, "ANSWERING"))

    async def left(self, call: Call, outcome: Outcome, why: str = "", retry_after: float | None = None) -> Verdict:
        """End ``call``: record its usage and wake the turns that can run now."""
        self._let_go(call)
        return await self._tell(call, outcome, why, retry_after)

    def abandoned(self, call: Call) -> None:
        """End a cancelled call, from code that cannot await."""
        self._let_go(call)
        self._later(self._tell(call, "NOTHING"))

    def saved(self, usage: Usage) -> None:
        """Count an answer that was recorded and not paid for again. Lost while the server is unavailable."""
        tokens, cost = usage.tokens_in + usage.tokens_out, self._cost(usage)
        for at in ("", f"m:{self.name}:"):
            self._spend({f"{at}saved_tokens": tokens, f"{at}saved_cost": cost})
        self._later(self._flush())

    def price(self, usage: Usage) -> float:
        """What ``usage`` costs."""
        return self._cost(usage) / MICRO

    async def waits(self, conversation: str) -> None:
        """Have the deferred turn of ``conversation`` woken when the model is back; at once if it already is."""
        if await self._server.run(WAIT, self._block(""), conversation=conversation):
            await self._wake(conversation)

    async def aclose(self) -> None:
        """Wait for pending reports."""
        self._closed.set()
        await self._tasks.drain()
        with suppress(ServerError):
            await self._flush()

    async def _check_budgets(self, caller: Caller) -> None:
        """Raise OverBudget if the caller, or all, have spent what is allowed today."""
        if not self._budgets:
            return
        s, user = self._settings, f"u:{caller.user}"
        limits = {
            ("user", "tokens"): (f"{user}:tokens", _most(caller, s.user_tokens_per_day)),
            ("user", "cost"): (f"{user}:cost", _most(caller, (s.user_cost_per_day or 0) * MICRO)),
            ("all", "tokens"): ("tokens", s.tokens_per_day or 0),
            ("all", "cost"): ("cost", round((s.cost_per_day or 0) * MICRO)),
        }
        spent = await self._server.fetch("HMGET", keys.spent(keys.today()), *(field for field, _ in limits.values()))
        for ((whose, what), (_, limit)), used in zip(limits.items(), spent, strict=True):
            if limit and int(used or 0) >= limit:
                raise _over_budget(whose, what, limit)

    def _entering(self, caller: Caller, request: Request, book: bool) -> dict[str, Any]:
        return {
            "ticket": f"{caller.conversation}/{caller.turn}",
            "tokens": expected_tokens(request),
            "rpm": self.terms.rpm or 0,
            "tpm": self.terms.tpm or 0,
            "minute": milliseconds(self._settings.quota_minute_seconds),
            "lease": milliseconds(LEASE_SECONDS),
            "book": int(book),
        }

    def _not_now(self, word: str, after: float, why: str, silent: float) -> NotNow:
        if word == "AWAY":
            return NotNow(f"{self.name} is away: {why}", after, (self.name,), silent=silent)
        if word == "FULL":
            limit = f"{self.name} has {self.terms.concurrent} calls at once, which is its limit"
            return NotNow(limit, after, (self.name,), "model_full")
        if why == "quota":
            return NotNow(f"the quota of {self.name} is used up for {after:.1f} s", after, kind="model_limit")
        return NotNow(f"{self.name} asks to wait: {why}", after, kind="model_limit")

    async def _tell(self, call: Call, outcome: Outcome, why: str = "", retry_after: float | None = None) -> Verdict:
        if outcome != "ANSWERING":
            self._spend(self._counts(call, outcome))
        verdict = await self._leave(call, outcome, why, retry_after)
        if self._budgets:
            await self._flush()
        return verdict

    async def _leave(self, call: Call, outcome: Outcome, why: str = "", retry_after: float | None = None) -> Verdict:
        counted = call.usage if outcome != "ANSWERING" and not call.estimated else None
        used = counted.tokens_in + counted.tokens_out if counted else -1
        away, after, silent, *names = await self._server.run(
            LEAVE, self._block(call.id), outcome=outcome, slice=call.slice, reserved=call.reserved, used=used,
            retry_after=-1 if retry_after is None else milliseconds(retry_after),
            breaker_failures=self._settings.breaker_failures, why=why[:300],
            probe_ms=milliseconds(self._settings.probe_seconds), expected=call.expected,
        )  # fmt: skip
        for name in names:
            self._later(self._rouse(name.decode()))
        return Verdict(bool(away), after / 1000 * random.uniform(1, 1.05), silent / 1000)

    async def _rouse(self, member: str) -> None:
        """Wake a turn, or in its place the next one: the room for it would stay free."""
        if not await self._wake(member):
            for name in await self._server.run(NEXT, self._block("")):
                self._later(self._rouse(name.decode()))

    def _spend(self, grown: Mapping[str, int]) -> None:
        """Note what was spent. Without a budget, what several calls spend is written together."""
        if not self._spent and not self._budgets:
            self._later(self._flush_soon())
        for name, by in grown.items():
            if by:
                self._spent[name] = self._spent.get(name, 0) + by

    async def _flush_soon(self) -> None:
        with suppress(TimeoutError):
            async with asyncio.timeout(SPEND_SECONDS):
                await self._closed.wait()
        await self._flush()

    async def _flush(self) -> None:
        spent, self._spent = self._spent, {}
        if spent:
            names, amounts = list(spent), list(spent.values())
            await self._server.run(SPEND, spent=keys.spent(keys.today()), names=names, amounts=amounts)

    def _counts(self, call: Call, outcome: Outcome) -> dict[str, int]:
        """What a call adds to the day's counters."""
        usage = call.usage or Usage(0, 0)
        tokens = usage.tokens_in + usage.tokens_out
        cost, user = self._cost(usage), call.caller.user
        return {
            "tokens": tokens, "cost": cost, **({f"u:{user}:tokens": tokens, f"u:{user}:cost": cost} if user else {}),
            f"m:{self.name}:in": usage.tokens_in, f"m:{self.name}:out": usage.tokens_out, f"m:{self.name}:cost": cost,
            f"m:{self.name}:calls": 1, f"m:{self.name}:ms": milliseconds(time.monotonic() - call.began),
            f"m:{self.name}:failed": int(outcome in ("FAILED", "LIMITED")),
        }  # fmt: skip

    def _cost(self, usage: Usage) -> int:
        return round(usage.tokens_in * self.terms.price_in + usage.tokens_out * self.terms.price_out)

    def _let_go(self, call: Call) -> None:
        if call.holding is not None:
            call.holding.cancel()

    async def _hold(self, call: str) -> None:
        while True:
            await asyncio.sleep(LEASE_SECONDS / 3)
            try:
                await extend(self._server, keys.model(self.name, "busy"), call, LEASE_SECONDS)
            except ServerError as error:
                logger.debug("a call of %s could not be held: %s", self.name, error)

    def _later(self, work: Coroutine[Any, Any, Any]) -> None:
        self._tasks.start(work, f"gate {self.name}")

    def _block(self, call: str) -> ModelBlock:
        state, use, booked, busy, waiting = (keys.model(self.name, part) for part in MODEL_PARTS)
        room = self.terms.concurrent or 0
        return {
            "state": state, "use": use, "booked": booked, "busy": busy, "waiting": waiting, "call": call, "room": room,
        }  # fmt: skip


def expected_tokens(request: Request) -> int:
    """A rough estimate of the tokens of ``request`` and its answer; the gate learns its error."""
    return _tokens_of(request) + (request.max_tokens or ANSWER_TOKENS)


def _tokens_of(request: Request) -> int:
    characters = sum(len(message.text) + 16 for message in request.messages)
    images = sum(len(message.images) for message in request.messages)
    return characters // TOKEN_CHARS + 800 * images


def _characters(event: ModelEvent) -> int:
    """How much of an answer ``event`` is."""
    return len(event.text if isinstance(event, Delta) else event.arguments if isinstance(event, ToolCall) else "")


def _over_budget(whose: str, what: str, limit: int) -> OverBudget:
    """The error for a budget of ``whose`` (user or all) for ``what`` (tokens or cost) that is used up."""
    kind = f"budget_{whose}"
    if what == "tokens":
        return OverBudget(told(kind, limit=f"{limit} tokens"), kind, tokens=limit)
    return OverBudget(told(kind, limit=money(limit / MICRO)), kind, cost=limit / MICRO)


def _most(caller: Caller, allowed: float | None) -> int:
    """The daily limit of ``caller``: its share of ``allowed``; 0 for no limit."""
    return max(1, round(allowed * caller.share)) if allowed and caller.user and caller.share else 0


class GatedModel:
    """``model`` behind ``gate``. A failure before the first token is retried up to twice, with backoff and jitter.
    Nothing is retried after the first token, and a timeout never is."""

    def __init__(self, model: Model, gate: Gate) -> None:
        self.name = model.name
        self.model = model
        self.gate = gate

    def stream(self, request: Request) -> AsyncIterator[ModelEvent]:
        """See Model.stream. Also raises NotNow, after booking a place if the quota is used up."""
        return self.attempt(request, book=True)

    async def attempt(self, request: Request, *, book: bool) -> AsyncIterator[ModelEvent]:
        """Like ``stream``; books a place in a used-up quota only with ``book``."""
        if request.logprobs is not None and not getattr(self.model, "logprobs", False):
            raise LogprobsRefused(f"{self.name}: has no log probabilities")
        for tries_left in reversed(range(TRIES)):
            call = await self._enter(request, book)
            try:
                async with closing(self._asked(call, request)) as events:
                    async for event in events:
                        yield event
                return
            except _Again as again:
                if not tries_left:
                    raise again.error from None
            await asyncio.sleep(random.uniform(0.1, 0.3) * 2 ** (TRIES - 1 - tries_left))

    async def book(self, request: Request) -> NotNow | None:
        """Book a place in the quota. None if the call could run right now."""
        try:
            self.gate.abandoned(await self.gate.enter(request, book=True))
        except NotNow as later:
            return later
        return None

    @property
    def warm(self) -> Callable[..., Awaitable[None]]:
        """Fetches and loads the model. Only one that runs on this machine has it."""
        return self.model.warm  # type: ignore[attr-defined,no-any-return]

    async def aclose(self) -> None:
        """Close the model and wait for pending reports."""
        await self.model.aclose()
        await self.gate.aclose()

    async def _enter(self, request: Request, book: bool) -> Call:
        try:
            return await self.gate.enter(request, book=book)
        except NotNow as later:
            if later.after > PATIENCE_SECONDS:
                raise
            await asyncio.sleep(later.after)
        return await self.gate.enter(request, book=book)

    async def _asked(self, call: Call, request: Request) -> AsyncIterator[ModelEvent]:
        begun = over = False
        try:
            async with closing(self.model.stream(request)) as events:
                async for event in events:
                    if not begun:
                        begun = True
                        self.gate.answering(call)
                    call.said += _characters(event)
                    if isinstance(event, Usage):
                        call.usage = event
                    elif isinstance(event, Done) and call.usage is None:
                        yield call.estimate()
                    yield event
            over, call.usage = True, call.usage or call.estimate()
            await self.gate.left(call, "OK")
        except ModelError as error:
            if begun and call.usage is None:
                yield call.estimate()
            over = True
            raise await self._judged(call, error, begun) from None
        finally:
            if not over:  # cancelled, or the consumer stopped early: providers charge for the question all the same
                call.usage = call.usage or call.estimate()
                self.gate.abandoned(call)

    async def _judged(self, call: Call, error: ModelError, begun: bool) -> Exception:
        """Report ``error`` to the gate, and return the exception to raise."""
        if isinstance(error, NotNow):  # all its servers are away, and it knows until when not to ask
            verdict = await self.gate.left(call, "AWAY", str(error), error.after)
            return NotNow(str(error), verdict.after, (self.name,), silent=verdict.silent)
        if isinstance(error, RateLimited):
            verdict = await self.gate.left(call, "LIMITED", str(error), error.retry_after)
            return error if begun else NotNow(str(error), verdict.after, kind="model_limit")
        if isinstance(error, ModelUnauthorised | NoSuchModel):
            await self.gate.left(call, "NOTHING")
        elif isinstance(error, ModelRefused):
            await self.gate.left(call, "OK")
        elif isinstance(error, ModelUnavailable | Truncated):
            verdict = await self.gate.left(call, "FAILED", str(error))
            if begun:
                return error
            if verdict.away:
                return NotNow(str(error), verdict.after, (self.name,), silent=verdict.silent)
            return error if isinstance(error, ModelTimeout) else _Again(error)
        else:
            await self.gate.left(call, "NOTHING")
        return error


class _Again(Exception):
    """``error`` came before the first word: another try may help."""

    def __init__(self, error: ModelError) -> None:
        super().__init__(str(error))
        self.error = error
