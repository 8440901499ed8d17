"""Translates providers' failures into the errors of this package."""

from __future__ import annotations

import email.utils
import re
import time
from collections.abc import Mapping
from dataclasses import dataclass
from urllib.parse import urlsplit

from rolecall.errors import (
    ContextTooLong,
    ModelError,
    ModelRefused,
    ModelTimeout,
    ModelUnauthorised,
    ModelUnavailable,
    NoSuchModel,
    RateLimited,
)
from rolecall.models.wire import NotTheProtocol, in_words

NUMBER = r"(\d[\d,_]{0,14})"
TOKENS = re.compile(
    rf"(?:resulted in|requested|contains) {NUMBER} tokens|too long: {NUMBER} tokens|token count \(?{NUMBER}"
    rf"|(?:request|prompt) \({NUMBER} tokens\)",
    re.IGNORECASE,
)
"""How providers say how many tokens a conversation has: OpenAI and its kin, Anthropic, Gemini, llama.cpp."""
CONTEXT = re.compile(
    rf"context (?:length|size|window) (?:is|of|\() ?{NUMBER}|{NUMBER} (?:maximum|tokens? context)"
    rf"|tokens allowed \(?{NUMBER}",
    re.IGNORECASE,
)
"""How they say how many fit."""


PASSING = frozenset({409, 421, 423, 425, 499})
"""Statuses of the 400s that another try may not meet again, besides 408 and 429."""


@dataclass(frozen=True)
class Refusal:
    """An error response of ``where`` for the model ``model``; ``words`` is the provider's message, safe to show.

    ``status`` is the HTTP status, 0 for an error within a stream that names none. ``retry_after`` is in seconds.
    """

    model: str
    where: str
    status: int
    words: str
    retry_after: float | None = None

    def error(self) -> ModelError:
        """The error for the status."""
        if self.status in (401, 403):
            return self.unauthorised()
        if self.status == 402:
            return self.no_credit()
        if self.status == 404:
            return NoSuchModel(f"{self.model}: {self.where} has no such model for this key; check the name")
        if self.status in (408, 504):
            return ModelTimeout(f"{self.model}: {self.where} gave up waiting ({self.status})")
        if self.status == 429:
            return RateLimited(f"{self.model}: {self.where} asks to wait: {self.words}", self.retry_after)
        if (400 <= self.status < 500 and self.status not in PASSING) or self.status in (501, 505):
            return ModelRefused(f"{self.model}: {self.where} refuses this request ({self.status}): {self.words}")
        return ModelUnavailable(
            f"{self.model}: {self.where} failed ({self.status or 'within the answer'}): {self.words}"
        )

    def unauthorised(self) -> ModelUnauthorised:
        """The error for a refused key, without the provider's message, which may quote the key."""
        return ModelUnauthorised(
            f"{self.model}: {self.where} refuses the key ({self.status}); check the key set for it"
        )

    def no_credit(self) -> ModelUnauthorised:
        """The error for an account without credit, which is not retried."""
        return ModelUnauthorised(f"{self.model}: the account at {self.where} has no credit left")

    def too_long(self) -> ContextTooLong:
        """The error for a conversation that exceeds the context."""
        text = f"{self.model}: the conversation is too long for this model: {self.words}"
        return ContextTooLong(text, _number(TOKENS, self.words), _number(CONTEXT, self.words))


def unreachable(model: str, where: str, error: BaseException) -> ModelUnavailable:
    """The error for a connection that failed or broke."""
    return ModelUnavailable(f"{model}: no connection to {where}: {innermost(error)}")


def not_accepted(model: str, where: str) -> ModelTimeout:
    """The error for a connect timeout, the only timeout left to the HTTP client."""
    return ModelTimeout(f"{model}: {where} does not accept the connection in time")


def not_the_protocol(model: str, where: str, protocol: str, error: BaseException) -> ModelUnavailable:
    """The error for a response that cannot be parsed. Of other errors than NotTheProtocol it names only the type: their
    text may contain whole answers."""
    what = str(error) if isinstance(error, NotTheProtocol) else type(error).__name__
    return ModelUnavailable(f"{model}: {where} does not speak the {protocol} protocol: {what}")


def host_of(url: str) -> str:
    """The host of ``url``, for messages: it contains no password."""
    return urlsplit(url).hostname or url


def safe_words(message: object, key: str) -> str:
    """A provider's message on one line, short and without ``key``."""
    said = in_words(str(message or "without a word"))
    return " ".join((said.replace(key, "(key)") if key else said).split())[:300]


def retry_after(headers: Mapping[str, str]) -> float | None:
    """Seconds from Retry-After (seconds or date) or OpenAI's retry-after-ms, or None."""
    for header, unit in (("retry-after-ms", 0.001), ("retry-after", 1.0)):
        try:
            return max(0.0, float(headers[header]) * unit)
        except (KeyError, ValueError):
            continue
    moment = email.utils.parsedate_tz(headers.get("retry-after", ""))
    return max(0.0, email.utils.mktime_tz(moment) - time.time()) if moment else None


def _number(pattern: re.Pattern[str], words: str) -> int:
    found = pattern.search(words)
    return int(re.sub(r"[,_]", "", next(filter(None, found.groups())))) if found else 0


def innermost(error: BaseException) -> str:
    """The text of the innermost cause: the SDK's own is often just "Connection error."."""
    said = str(error)
    while error.__cause__ or error.__context__:
        error = error.__cause__ or error.__context__ or error
        said = str(error) or said
    return said or type(error).__name__
