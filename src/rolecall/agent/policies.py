"""The policies around every handler: one tuple, outermost first."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

from rolecall.agent.context import AgentServices, Context
from rolecall.bus.envelope import Envelope, encode
from rolecall.errors import (
    BadStructure,
    ConfigError,
    EnvelopeTooLarge,
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
)
from rolecall.version import plugins

Handler = Callable[[Envelope, Context], Awaitable[Envelope]]
BACK_OFF = (1.0, 5.0, 15.0, 45.0, 120.0)
"""Seconds before the next attempt after a model failed; the last one repeats."""


@dataclass(frozen=True)
class Rules:
    """The limits that the policies enforce on a handler."""

    role: str
    roles: frozenset[str]
    hop_limit: int
    timeout: float
    attempts: int = 8
    policies: tuple[Policy, ...] = ()
    """Those of the application and of installed packages, applied inside the built-in ones."""

    @classmethod
    def of(cls, role: str, services: AgentServices) -> Rules:
        """The limits of ``role`` in a deployment."""
        settings = services.bus.settings
        return cls(
            role, frozenset(services.roles), settings.hop_limit, settings.assistant_timeout, settings.max_attempts,
            services.policies,
        )  # fmt: skip


Policy = Callable[[Handler, Rules], Handler]


def limits(handler: Handler, rules: Rules) -> Handler:
    """Reject too many hops, a result that is not an envelope, unknown roles, a loop, and a result that is too large."""

    async def limited(envelope: Envelope, ctx: Context) -> Envelope:
        if envelope.hops > rules.hop_limit:
            raise Reject(f"it went through more than {rules.hop_limit} roles")
        result = await handler(envelope, ctx)
        _check_result(result, rules)
        try:
            encode(result)
        except RolecallError as error:
            raise Reject(str(error)) from error
        return result

    return limited


def back_off(handler: Handler, rules: Rules) -> Handler:
    """Turn a model failure into a retry while that may help, otherwise into a clear rejection."""

    async def backed_off(envelope: Envelope, ctx: Context) -> Envelope:
        try:
            return await handler(envelope, ctx)
        except OverBudget as error:
            return envelope.reply(str(error), remember=False)
        except NotNow as error:
            raise Retry(max(0.1, error.after), str(error), free=True, models=error.models) from error
        except (BadStructure, NoSuchModel, ToolError) as error:
            raise Reject(str(error)) from error
        except ModelUnauthorised as error:
            raise Reject(f"the model's provider refused the key: {error}") from error
        except ModelRefused as error:
            raise Reject(f"the model refused: {error}") from error
        except ModelError as error:
            if envelope.attempt + 1 >= rules.attempts:
                raise Reject(f"the model did not answer in {rules.attempts} tries: {error}") from error
            raise Retry(_pause(error, envelope.attempt), str(error)) from error
        except (ConfigError, UnknownRole, EnvelopeTooLarge) as error:
            raise Reject(str(error)) from error

    return backed_off


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


POLICIES: tuple[Policy, ...] = (limits, back_off, timeout)


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
        if not callable(policy):
            raise ConfigError(f"policy {policy!r} is invalid: expected a function of a handler and its rules")
    return tuple(found)


def _check_result(result: object, rules: Rules) -> None:
    if not isinstance(result, Envelope):
        raise Reject(f"{rules.role} returned {type(result).__name__}, not an envelope")
    if result.answered:
        return
    wanted = [name.partition("@")[0] for name in (result.role, *result.route)]
    for name in wanted:
        if name not in rules.roles:
            raise Reject(f"there is no role {name!r}; there are {', '.join(sorted(rules.roles))}")
    if result.role == rules.role:
        raise Reject(f"{rules.role} sent the turn to itself")


def _pause(error: ModelError, attempt: int) -> float:
    if isinstance(error, RateLimited) and error.retry_after is not None:
        return max(0.1, error.retry_after)
    return BACK_OFF[min(attempt, len(BACK_OFF) - 1)] * random.uniform(0.8, 1.2)
