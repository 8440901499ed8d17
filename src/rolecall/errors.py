"""The error tree: each name says what the caller can do. And what is behind an exception group."""

from __future__ import annotations

import copyreg
import inspect
import math
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any, Literal

FAILURES: Mapping[str, str] = {
    "model_away": "Sorry, the model isn't answering. Please try again later.",
    "model_limited": "Sorry, the model has reached its limit. Please try again in {wait}.",
    "model_setup": "Sorry, the model can't be used right now. The operator of this assistant can find out why.",
    "model_refused": "Sorry, the model refused this request.",
    "content_refused": "Sorry, the provider's content filter blocked this.",
    "images_refused": "Sorry, this model can't read these images.",
    "too_long": "Sorry, this is too long for the model. /clear starts a new conversation.",
    "bad_answer": "Sorry, the model gave no usable answer. Please try again.",
    "tool_failed": "Sorry, a tool that this needs isn't available right now.",
    "defect": "Sorry, something went wrong here. The operator of this assistant can find out why.",
    "cannot_ask": "Sorry, I would have to ask you something first, and I can't do that here. Please try it in a chat.",
    "took_too_long": "Sorry, this took too long, so I gave up.",
    "budget_user": "You've reached today's limit{limit}. It resets at midnight UTC.",
    "budget_all": "This assistant has reached today's limit{limit}. It resets at midnight UTC.",
}
"""What users are told about a failed turn, by its kind. Front ends have ``failure_<kind>`` in more languages."""
WAITS: Mapping[str, str] = {
    "model_silent": "The model isn't answering. I'll keep trying.",
    "model_full": "The model is busy. I'll answer as soon as it's free.",
    "model_limit": "The model has reached its limit. I'll continue in {wait}.",
}
"""What users are told while a turn waits, by the kind of its delay. Front ends have ``waiting_<kind>`` in more
languages."""


def told(kind: str, wait: float = 0.0, limit: str = "") -> str:
    """The sentence of FAILURES or WAITS for ``kind``; ``wait`` is in seconds, ``limit`` such as ``5.00 USD``."""
    return (FAILURES.get(kind) or WAITS[kind]).format(wait=duration(wait), limit=f" ({limit})" if limit else "")


def money(usd: float) -> str:
    """``usd`` as users of every language read it: 5.00 USD, 0.0003 USD."""
    return f"{usd:.2f} USD" if usd >= 0.01 else f"{usd:g} USD"


def duration(seconds: float) -> str:
    """``seconds`` rounded up, in English: 40 s, 5 min, 2 h."""
    count, unit = rounded(seconds)
    return f"{count} {unit}"


def rounded(seconds: float) -> tuple[int, Literal["s", "min", "h"]]:
    """``seconds`` rounded up, in the unit that suits it."""
    if seconds <= 90:
        return max(1, -int(-seconds // 1)), "s"
    minutes = -int(-seconds // 60)
    return (minutes, "min") if minutes <= 90 else (-(-minutes // 60), "h")


class RolecallError(Exception):
    """Root of every error that this package raises on purpose; its text is written for people."""

    def __reduce__(self) -> tuple[Any, ...]:
        """For pickle and copy: an exception is made again from its text, whatever arguments its class takes."""
        return copyreg.__newobj__, (type(self), *self.args), self.__dict__  # type: ignore[attr-defined]


class ConfigError(RolecallError):
    """Raised when a setting or the application directory is wrong; names it, its value and what is expected."""


class MissingExtra(ConfigError):
    """Raised when an optional library is missing; names the extra to install."""

    def __init__(self, extra: str, purpose: str) -> None:
        super().__init__(f"{purpose} needs an extra: pip install 'rolecall[{extra}]'")


class DecodeError(RolecallError):
    """Raised when bytes from the bus are not an envelope; ``raw`` holds them."""

    def __init__(self, reason: str, raw: bytes = b"") -> None:
        super().__init__(reason)
        self.raw = raw


class NewerVersion(DecodeError):
    """Raised when an envelope was written by a later version of this package."""


class EnvelopeTooLarge(RolecallError):
    """Raised when an envelope or its text exceeds its limit; nothing was written."""


class BlobTooLarge(RolecallError):
    """Raised when an image or a file exceeds its limit; nothing was written."""


class BadSchedule(RolecallError):
    """Raised for a schedule that cannot be kept: its time, cron line, time zone or text is invalid, or the conversation
    has too many. ``kind`` is past, far, often (more than once a minute), cron, long (the text) or full (too many), else
    empty. Nothing was written."""

    def __init__(self, message: str, kind: str = "") -> None:
        super().__init__(message)
        self.kind = kind


class UnknownRole(RolecallError):
    """Raised when a route names a role that this deployment does not configure."""


class ServerError(RolecallError):
    """Root of what can go wrong between this process and its Redis or Valkey server. ``code`` is the first word of the
    server's answer, such as READONLY; empty when it gave none. ``__cause__`` holds the error of the client library.
    Loops that must survive whatever the server does catch this class."""

    def __init__(self, message: str, code: str = "") -> None:
        super().__init__(message)
        self.code = code


class ServerUnavailable(ServerError):
    """Raised when the Redis or Valkey server cannot be reached, answers that it cannot do this now, or is too old. The
    same command may succeed later: wait and repeat it. redis/outage.py decides which answers mean that."""


class ServerRefused(ServerError):
    """Raised when the server answers a command with an error that repeating it does not change."""


class ServerFull(ServerUnavailable):
    """Raised when the server refuses a write because it is out of memory; nothing was written."""


class NothingRunning(RolecallError):
    """Raised when no worker is running that could answer."""


class Refused(RolecallError):
    """Raised when a message is not accepted; nothing was written. ``code`` is FULL (its conversation or user has too
    many unanswered messages), BUSY (the system has) or CONFLICT (the idempotency key was used for another message)."""

    def __init__(self, reason: str, code: str) -> None:
        super().__init__(reason)
        self.code = code


class TurnFailed(RolecallError):
    """Raised instead of an answer: the turn was given up, or ``cancelled``. The text is what the user was told."""

    def __init__(self, text: str, conversation: str, turn: str, *, cancelled: bool = False) -> None:
        super().__init__(text)
        self.conversation = conversation
        self.turn = turn
        self.cancelled = cancelled


class Retry(RolecallError):
    """Raised by a handler to have the envelope handled again, after ``after`` seconds at the earliest.

    With ``models`` the turn resumes as soon as one of them is available, but after ``after`` seconds at the latest. A
    retry with ``models``, and any that is ``free``, does not count as an attempt. With ``kind``, one of WAITS, users
    are told that sentence instead of ``reason``, which only operators see.
    """

    def __init__(
        self,
        after: float = 1.0,
        reason: str = "the agent asked for another attempt",
        *,
        free: bool = False,
        models: tuple[str, ...] = (),
        kind: str = "",
    ) -> None:
        if not isinstance(after, int | float) or not abs(after) < math.inf:
            raise TypeError(f"Retry(after={after!r}) is invalid: expected a number of seconds")
        if isinstance(models, str) or not all(isinstance(name, str) for name in models):
            raise TypeError(f"Retry(models={models!r}) is invalid: expected names such as ('smollm2@local',)")
        super().__init__(reason)
        self.after = after
        self.free = free or bool(models)
        self.models = tuple(models)
        self.kind = kind


class Reject(RolecallError):
    """Raised by a handler to end the turn with an error; its text is shown to the user. With ``kind``, one of FAILURES,
    the user is told that sentence instead, with ``wait`` in seconds, and only operators see the text."""

    def __init__(self, reason: str = "", *, kind: str = "", wait: float = 0.0) -> None:
        if kind and kind not in FAILURES:
            raise TypeError(f"Reject(kind={kind!r}) is invalid: expected one of {', '.join(FAILURES)}")
        if not isinstance(wait, int | float) or not abs(wait) < math.inf:
            raise TypeError(f"Reject(wait={wait!r}) is invalid: expected a number of seconds")
        super().__init__(reason)
        self.kind = kind
        self.wait = wait


class TurnTimeout(RolecallError):
    """Raised when a handler exceeds its time limit."""


class StepError(RolecallError):
    """Raised when a step of a handler cannot be recorded or replayed; it ends the turn, even if the handler catches
    it. ``kind`` is one of FAILURES."""

    kind = "defect"


class CannotAsk(StepError):
    """Raised when a handler asks a user whose front end shows no questions."""

    kind = "cannot_ask"


class NonDeterministic(StepError):
    """Raised when a handler that is run again asks for other steps than it has recorded."""


class StepTooLarge(StepError):
    """Raised when the result of a step exceeds its limit, or all steps of a handler exceed theirs."""


class CallFailed(RolecallError):
    """Raised when a role that a handler has called gave up: ``role`` and ``reason``, for operators. ``kind``, one of
    FAILURES, and ``wait`` in seconds say what a user is told about it, as far as the role said."""

    def __init__(self, role: str, reason: str, *, kind: str = "", wait: float = 0.0) -> None:
        super().__init__(f"{role} failed: {reason}")
        self.role = role
        self.reason = reason
        self.kind = kind
        self.wait = wait


class ToolError(RolecallError):
    """Raised by a tool that cannot do what it was asked, and when a tool server is unavailable. The text is shown to
    the model, or to the user when no model called the tool."""


class ModelError(RolecallError):
    """Root of everything that can go wrong at a language model's provider."""


class RateLimited(ModelError):
    """Raised when the provider asks to wait: ``retry_after`` seconds, None when it did not say how long."""

    def __init__(self, message: str, retry_after: float | None = None) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class ModelUnavailable(ModelError):
    """Raised when the provider cannot be reached or answers with a server error."""


class ModelTimeout(ModelUnavailable):
    """Raised when the provider is silent for too long."""


class Truncated(ModelError):
    """Raised when a stream ends without its finish marker; ``text`` is what arrived before."""

    def __init__(self, message: str, text: str = "") -> None:
        super().__init__(message)
        self.text = text


class NotNow(ModelError):
    """Raised instead of calling a model that is known to be unavailable or whose quota is used up. ``after`` is seconds
    to the next attempt, which is free; the turn resumes earlier when one of ``models`` is available again. ``kind`` is
    one of WAITS. ``silent`` is for how many seconds they have not answered."""

    def __init__(
        self,
        message: str,
        after: float,
        models: tuple[str, ...] = (),
        kind: str = "model_silent",
        *,
        silent: float = 0.0,
    ) -> None:
        super().__init__(message)
        self.silent = silent
        self.after = after
        self.models = models
        self.kind = kind


class OverBudget(ModelError):
    """Raised when the daily budget of a user or the deployment is used up; its text is the answer to the user, and
    ``kind`` is one of FAILURES. The limit is in ``tokens``, or in USD in ``cost``; 0 is not known."""

    def __init__(self, message: str, kind: str = "budget_all", *, tokens: int = 0, cost: float = 0.0) -> None:
        super().__init__(message)
        self.kind = kind
        self.tokens = tokens
        self.cost = cost

    @property
    def limit(self) -> dict[str, float]:
        """The limit as the payload of the failure has it."""
        return {"tokens": self.tokens} if self.tokens else {"cost": self.cost} if self.cost else {}


class ModelRefused(ModelError):
    """Raised when the provider refuses this request permanently: bad request, context too long, content."""


class ContextTooLong(ModelRefused):
    """Raised when the conversation does not fit the model's context. ``tokens`` is what it has and ``limit`` what fits,
    as the provider counts them; 0 if it does not say."""

    def __init__(self, text: str, tokens: int = 0, limit: int = 0) -> None:
        super().__init__(text)
        self.tokens = tokens
        self.limit = limit


class QuotaTooSmall(ContextTooLong):
    """Raised when a request is larger than what the provider allows this account in a whole minute: another model may
    take it."""


class ContentRefused(ModelRefused):
    """Raised when the provider's content filter blocks the question or the answer."""


class ImagesRefused(ModelRefused):
    """Raised when the model accepts no images, or not these."""


class LogprobsRefused(ModelRefused):
    """Raised when the model gives no log probabilities."""


class NoSuchModel(ModelRefused):
    """Raised when the provider does not offer the model, or not for this key."""


class BadStructure(ModelRefused):
    """Raised when a model twice gave an answer that does not match the JSON schema."""


class ModelUnauthorised(ModelRefused):
    """Raised when the provider refuses the key."""


def expect(fits: bool, name: str, value: object, expected: str = "a text") -> None:
    """Raise TypeError unless the argument ``name`` of a public method ``fits``; ``value`` is what was given."""
    if not fits:
        raise TypeError(f"{name} is of type {type(value).__name__}: expected {expected}")


def expect_texts(**given: object) -> None:
    """``expect`` a text of each argument."""
    for name, value in given.items():
        expect(isinstance(value, str), name, value)


def expect_call(function: Callable[..., object], count: int) -> None:
    """Raise TypeError unless ``function`` can be called with ``count`` arguments. One whose signature Python does not
    know passes."""
    with suppress(ValueError):
        inspect.signature(function).bind(*[None] * count)


def text_of(error: BaseException) -> str:
    """What ``error`` says; empty if its class, which may be anybody's code, cannot tell."""
    try:
        return str(error)
    except Exception:
        return ""


def cause_of(error: BaseException) -> BaseException:
    """The one error that stands for ``error``: of an exception group, an unavailable server if there is one among its
    members, since what else went wrong shows again without it; otherwise the first member."""
    leaves = _leaves(error)
    return next((leaf for leaf in leaves if isinstance(leaf, ServerUnavailable)), leaves[0])


def _leaves(error: BaseException) -> list[BaseException]:
    if not isinstance(error, BaseExceptionGroup):
        return [error]
    return [leaf for member in error.exceptions for leaf in _leaves(member)]
