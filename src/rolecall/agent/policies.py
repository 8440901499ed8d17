"""The policies around every handler: one tuple, outermost first."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass

from rolecall.agent.agent_services import AgentServices
from rolecall.agent.context import Context
from rolecall.bus.envelope import Envelope, encode
from rolecall.errors import (
    BadStructure,
    CallFailed,
    ConfigError,
    ContentRefused,
    ContextTooLong,
    EnvelopeTooLarge,
    ImagesRefused,
    ModelError,
    ModelRefused,
    ModelUnauthorised,
    NoSuchModel,
    NotNow,
    OverBudget,
    RateLimited,
    Reject,
    Retry,
    RolecallError,
    ToolError,
    TurnTimeout,
    UnknownRole,
    cause_of,
    expect_call,
)
from rolecall.version import plugins

Handler = Callable[[Envelope, Context], Awaitable[Envelope]]
BACK_OFF = (1.0, 3.0, 8.0, 15.0, 25.0, 30.0)
"""Seconds before the next attempt after a model failed; the last one repeats. The eight attempts of a turn take two
minutes: longer than most outages, and as long as a chat should wait behind one message."""
KINDS: Mapping[type[RolecallError], str] = {
    ContextTooLong: "too_long",
    ContentRefused: "content_refused",
    ImagesRefused: "images_refused",
    BadStructure: "bad_answer",
    NoSuchModel: "model_setup",
    ModelUnauthorised: "model_setup",
    ModelRefused: "model_refused",
    ToolError: "tool_failed",
    RateLimited: "model_limited",
}
"""The first class that an error is an instance of decides what the user is told, see errors.FAILURES."""
BUDGETS = ("budget_user", "budget_all")


@dataclass(frozen=True)
class Rules:
    """The limits that the policies enforce on a handler."""

    role: str
    roles: frozenset[str]
    hop_limit: int
    timeout: float
    attempts: int = 8
    turn_seconds: float = 3600
    model_seconds: float = 120
    policies: tuple[Policy, ...] = ()
    """Those of the application and of installed packages, applied inside the built-in ones."""

    @classmethod
    def of(cls, role: str, services: AgentServices) -> Rules:
        """The limits of ``role`` in a deployment."""
        settings = services.bus.settings
        return cls(
            role, frozenset(services.roles), settings.hop_limit, settings.assistant_timeout, settings.max_attempts,
            settings.turn_seconds, settings.model_wait_seconds, services.policies,
        )  # fmt: skip


Policy = Callable[[Handler, Rules], Handler]


def limits(handler: Handler, rules: Rules) -> Handler:
    """Reject too many hops, a result that is not an envelope, unknown roles, a loop, and a result that is too large."""

    async def limited(envelope: Envelope, ctx: Context) -> Envelope:
        if envelope.hops > rules.hop_limit:
            raise Reject(f"it went through more than {rules.hop_limit} roles", kind="defect")
        result = await handler(envelope, ctx)
        _check_result(result, rules)
        try:
            encode(result)
        except RolecallError as error:
            raise Reject(str(error), kind="defect") from error
        return result

    return limited


def back_off(handler: Handler, rules: Rules) -> Handler:
    """Turn a model failure into a retry while that may help, otherwise into a clear rejection."""

    async def backed_off(envelope: Envelope, ctx: Context) -> Envelope:
        try:
            return await handler(envelope, ctx)
        except OverBudget as error:
            return envelope.reply(str(error), remember=False, failure={"kind": error.kind, **error.limit})
        except NotNow as error:
            if error.silent > rules.model_seconds:
                raise Reject(f"{error}, for {error.silent:.0f} s now", kind="model_away") from error
            if not error.models:
                _refuse_long_wait(error.after, envelope, rules, error)
            raise Retry(max(0.1, error.after), str(error), free=True, models=error.models, kind=error.kind) from error
        except (ModelRefused, ToolError) as error:
            raise Reject(_details(error), kind=_kind(error)) from error
        except ModelError as error:
            if envelope.attempt + 1 >= rules.attempts:
                details = f"the model did not answer in {rules.attempts} tries: {error}"
                raise Reject(details, kind=_kind(error)) from error
            pause, limited = _pause(error, envelope.attempt), isinstance(error, RateLimited)
            _refuse_long_wait(pause, envelope, rules, error)
            raise Retry(pause, str(error), kind="model_limit" if limited else "model_silent") from error

    return backed_off


def refuse(handler: Handler, rules: Rules) -> Handler:
    """Reject what another attempt would not change: a mistake in the configuration, or a call that failed."""

    async def refused(envelope: Envelope, ctx: Context) -> Envelope:
        try:
            return await handler(envelope, ctx)
        except CallFailed as error:
            if error.kind in BUDGETS:
                raise OverBudget(error.reason, error.kind) from error
            raise Reject(str(error), kind=error.kind or "defect", wait=error.wait) from error
        except (UnknownRole, EnvelopeTooLarge) as error:
            raise Reject(str(error), kind="defect") from error
        except ConfigError as error:
            raise Reject(str(error)) from error

    return refused


def timeout(handler: Handler, rules: Rules) -> Handler:
    """Cancel a handler that exceeds its time."""

    async def timed(envelope: Envelope, ctx: Context) -> Envelope:
        try:
            async with asyncio.timeout(rules.timeout) as limit:
                return await handler(envelope, ctx)
        except TimeoutError as error:
            if not limit.expired():
                raise
            raise TurnTimeout(f"{rules.role} took more than {rules.timeout:g} s") from error

    return timed


def unwrap_groups(handler: Handler, rules: Rules) -> Handler:
    """Raise the one error that stands for an exception group, such as that of a TaskGroup in the handler."""

    async def unwrapped(envelope: Envelope, ctx: Context) -> Envelope:
        try:
            return await handler(envelope, ctx)
        except BaseExceptionGroup as group:
            raise cause_of(group) from group

    return unwrapped


POLICIES: tuple[Policy, ...] = (limits, back_off, refuse, unwrap_groups, timeout)


def wrapped(handler: Handler, rules: Rules) -> Handler:
    """``handler`` wrapped in POLICIES and, inside these, in those of ``rules``."""
    for policy in reversed((*POLICIES, *rules.policies)):
        handler = policy(handler, rules)
    return handler


def all_policies(own: Sequence[object]) -> tuple[Policy, ...]:
    """The policies of installed packages (entry points ``rolecall.policies``), then the application's ``own``. Raises
    ConfigError for one that is not a function."""
    found = [*plugins("rolecall.policies", "policy").values(), *own]
    for policy in found:
        try:
            expect_call(policy, 2)
        except TypeError:
            expected = "expected a function of a handler and its rules"
            raise ConfigError(f"policy {policy!r} is invalid: {expected}") from None
    return tuple(found)


def _check_result(result: object, rules: Rules) -> None:
    if not isinstance(result, Envelope):
        raise Reject(f"{rules.role} returned {type(result).__name__}, not an envelope", kind="defect")
    if result.answered:
        return
    wanted = [name.partition("@")[0] for name in (result.role, *result.route)]
    for name in wanted:
        if name not in rules.roles:
            raise Reject(f"there is no role {name!r}; there are {', '.join(sorted(rules.roles))}", kind="defect")
    if result.role == rules.role:
        raise Reject(f"{rules.role} sent the turn to itself", kind="defect")


def _kind(error: RolecallError) -> str:
    """The kind of FAILURES that ``error`` is."""
    return next((kind for cls, kind in KINDS.items() if isinstance(error, cls)), "model_away")


def _details(error: RolecallError) -> str:
    """What operators read about a refusal."""
    if isinstance(error, ModelUnauthorised):
        return f"the model's provider refused the key: {error}"
    if isinstance(error, ModelRefused) and not isinstance(error, BadStructure | NoSuchModel):
        return f"the model refused: {error}"
    return str(error)


def _refuse_long_wait(seconds: float, envelope: Envelope, rules: Rules, error: ModelError) -> None:
    """Raises Reject if the time of the turn is over before ``seconds`` are."""
    age = max(0.0, time.time() - envelope.created / 1000)
    if seconds > rules.turn_seconds - age:
        details = f"{error}; the turn has {max(0.0, rules.turn_seconds - age):.0f} of its {rules.turn_seconds:g} s left"
        raise Reject(details, kind="model_limited", wait=seconds) from error


def _pause(error: ModelError, attempt: int) -> float:
    if isinstance(error, RateLimited) and error.retry_after is not None:
        return max(0.1, error.retry_after)
    return BACK_OFF[min(attempt, len(BACK_OFF) - 1)] * random.uniform(0.8, 1.2)
