"""The error tree: each name says what the caller can do about it."""

from __future__ import annotations


class RolecallError(Exception):
    """Root of every error this package raises on purpose; its text is fit for a person."""


class ConfigError(RolecallError):
    """Raised when a setting or the application directory is wrong; names it, its value and what is allowed."""


class MissingExtra(ConfigError):
    """Raised when an optional library is needed and absent; names the extra to install."""

    def __init__(self, extra: str, purpose: str) -> None:
        super().__init__(f"{purpose} needs an extra: pip install 'rolecall[{extra}]'")


class DecodeError(RolecallError):
    """Raised when bytes from the bus are no envelope; ``raw`` holds them."""

    def __init__(self, reason: str, raw: bytes = b"") -> None:
        super().__init__(reason)
        self.raw = raw


class NewerVersion(DecodeError):
    """Raised when an envelope was written by a later version of this package."""


class EnvelopeTooLarge(RolecallError):
    """Raised when an envelope or its text exceeds its limit; nothing was written."""


class BlobTooLarge(RolecallError):
    """Raised when an image or a file exceeds its limit; nothing was written."""


class UnknownRole(RolecallError):
    """Raised when a route names a role that this deployment does not configure."""


class ServerError(RolecallError):
    """Root of what can go wrong between this process and its Redis or Valkey server. ``__cause__`` holds the error of
    the client library. Loops that must survive whatever the server does catch this class."""


class ServerUnavailable(ServerError):
    """Raised when the Redis or Valkey server cannot be reached, is on its way back, or is too old."""


class ServerRefused(ServerError):
    """Raised when the server answers a command with an error; ``code`` is its first word, such as WRONGTYPE."""

    def __init__(self, message: str, code: str = "") -> None:
        super().__init__(message)
        self.code = code


class ServerFull(ServerRefused):
    """Raised when the server refuses a write because it is out of memory; nothing was written."""


class NothingRunning(RolecallError):
    """Raised when no worker is there to answer."""


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
    """Raised by a handler: hand this envelope to an instance again, not before ``after`` seconds.

    With ``models`` it waits for one of them instead and comes back when that one does, at the latest then; such a
    waiting, and any that is ``free``, is none of the turn's tries.
    """

    def __init__(
        self,
        after: float = 1.0,
        reason: str = "the agent asked for another try",
        *,
        free: bool = False,
        models: tuple[str, ...] = (),
    ) -> None:
        super().__init__(reason)
        self.after = after
        self.free = free or bool(models)
        self.models = models


class Reject(RolecallError):
    """Raised by a handler: give this turn up; ``reason`` is shown to the user."""


class TurnTimeout(RolecallError):
    """Raised when a handler used more time than its limit."""


class ToolError(RolecallError):
    """Raised by a tool that cannot do what it was asked, and when a tool server is away; its text is told to the model,
    or to the user where no model asked."""


class ModelError(RolecallError):
    """Root of what a language model's provider can do to us."""


class RateLimited(ModelError):
    """Raised when the provider asks to wait; ``retry_after`` is seconds, None when it did not say."""

    def __init__(self, message: str, retry_after: float | None = None) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class ModelUnavailable(ModelError):
    """Raised when the provider cannot be reached or answers with a server error."""


class ModelTimeout(ModelUnavailable):
    """Raised when the provider stays silent longer than allowed."""


class Truncated(ModelError):
    """Raised when a stream ended without its finish marker; ``text`` is what had come."""

    def __init__(self, message: str, text: str = "") -> None:
        super().__init__(message)
        self.text = text


class NotNow(ModelError):
    """Raised before the model was asked: it is known to be away, or its quota is used up. ``after`` is seconds to the
    next try, which costs the turn none of its tries; ``models`` are those whose return ends the waiting earlier."""

    def __init__(self, message: str, after: float, models: tuple[str, ...] = ()) -> None:
        super().__init__(message)
        self.after = after
        self.models = models


class OverBudget(ModelError):
    """Raised when the tokens or the money that a user or the deployment may spend in a day are spent; its text is the
    answer to the user."""


class ModelRefused(ModelError):
    """Raised when the provider refuses this request for good: bad request, context too long, content."""


class ContextTooLong(ModelRefused):
    """Raised when the conversation does not fit the model's context."""


class ContentRefused(ModelRefused):
    """Raised when the provider's content filter stopped the question or the answer."""


class ImagesRefused(ModelRefused):
    """Raised when the model takes no images, or not these."""


class NoSuchModel(ModelRefused):
    """Raised when the provider does not know the model, or not for this key."""


class BadStructure(ModelRefused):
    """Raised when a model twice gave no JSON of the form that was asked for."""


class ModelUnauthorised(ModelRefused):
    """Raised when the provider refuses the key."""
