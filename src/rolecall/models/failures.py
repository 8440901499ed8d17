"""Translates providers' failures into the errors of this package."""

from __future__ import annotations

import email.utils
import json
import math
import re
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any
from urllib.parse import urljoin, urlsplit

from rolecall.errors import (
    ContextTooLong,
    ImagesRefused,
    ModelError,
    ModelRefused,
    ModelTimeout,
    ModelUnauthorised,
    ModelUnavailable,
    NoSuchModel,
    QuotaTooSmall,
    RateLimited,
)
from rolecall.models.wire import NotTheProtocol, in_words, member
from rolecall.tracing.traceparent import add_traceparent

NUMBER = r"(\d[\d,_]{0,14})"
TOKENS = re.compile(
    rf"(?:resulted in|requested|contains) {NUMBER} tokens|too long: {NUMBER} tokens|token count \(?{NUMBER}"
    rf"|(?:request|prompt) \({NUMBER} tokens\)|limit [\d,_]+, requested {NUMBER}",
    re.IGNORECASE,
)
"""How providers say how many tokens a conversation has: OpenAI and its kin, Anthropic, Gemini, llama.cpp."""
CONTEXT = re.compile(
    rf"(?:context|prompt) (?:length|size|window) (?:is|of|\()(?: only)? ?{NUMBER}|{NUMBER} (?:maximum|tokens? context)"
    rf"|tokens allowed \(?{NUMBER}|limit {NUMBER}, requested",
    re.IGNORECASE,
)
"""How they say how many fit."""
WAIT = re.compile(
    r"(?:try again|retry) in (?=\d)(?:(\d+)h)?(?:(\d+)m(?!s))?(?:(\d+(?:\.\d+)?)(ms|s))?(?!\w)", re.IGNORECASE
)
"""How they say how long to wait where no header does: 8s, 350ms, 14m24.5s, 2h3m."""
SAYS_NO_IMAGES = re.compile(r"image|vision|multi-?modal|mmproj", re.IGNORECASE)
SAYS_NO_TOOLS = re.compile(r"not support (tool|function)|support tool use|tools? (choice|param) requires", re.I)
LEVELS = 8
"""So deep the message of an error is looked for."""
EPOCH = 1_000_000_000
"""A longer wait in seconds is a time: some servers name the moment."""


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
        if self.status == 401:
            return self.unauthorised()
        if self.status == 403:
            return ModelUnauthorised(f"{self.model}: {self.where} denies access (403); check the key: {self.words}")
        if self.status == 402:
            return self.no_credit()
        if self.status == 404:
            return NoSuchModel(f"{self.model}: {self.where} has no such model for this key; check the name")
        if self.status in (408, 504):
            return ModelTimeout(f"{self.model}: {self.where} gave up waiting ({self.status})")
        if self.status == 429:
            return self.rate_limited()
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

    def rate_limited(self) -> ModelError:
        """The error for a request that may be made later. One that exceeds what a whole minute allows never may: it is
        too long."""
        tokens, limit = _number(TOKENS, self.words), _number(CONTEXT, self.words)
        if 0 < limit < tokens:
            return QuotaTooSmall(f"{self.model}: too large for the quota at {self.where}: {self.words}", tokens, limit)
        text = f"{self.model}: {self.where} asks to wait: {self.words}"
        return RateLimited(text, wait_in(self.words) if self.retry_after is None else self.retry_after)

    def no_images(self) -> ImagesRefused:
        """The error for images that the model cannot read."""
        return ImagesRefused(f"{self.model}: takes no images, or not these: {self.words}")

    def no_tools(self) -> NoSuchModel:
        """The error for a model that cannot call tools, or not as its server runs it."""
        return NoSuchModel(f"{self.model}: cannot call tools at {self.where}: {self.words}")

    def no_account(self) -> ModelUnauthorised:
        """The error for an account that may not be used, or not yet."""
        return ModelUnauthorised(f"{self.model}: {self.where} refuses this account: {self.words}")

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


async def refuse_redirect(response: Any) -> None:
    """Raise NotTheProtocol for a redirect after which clients ask by GET, without the question: the address of the
    server is another one, most often with https."""
    if response.status_code in (301, 302, 303) and response.request.method == "POST":
        to = urlsplit(urljoin(str(response.request.url), response.headers.get("location", "")))
        address = f"{to.scheme}://{to.netloc.rpartition('@')[2]}{to.path}"
        raise NotTheProtocol(f"it redirects to {address}; use the address it redirects to")


HOOKS: dict[str, list[Callable[[Any], Any]]] = {"request": [add_traceparent], "response": [refuse_redirect]}
"""What the HTTP clients of providers do with each request and response."""


def host_of(url: str) -> str:
    """The host of ``url``, for messages: it contains no password."""
    return urlsplit(url).hostname or url


def safe_words(message: object, key: str) -> str:
    """A provider's message on one line, short and without ``key``."""
    said = in_words(str(message or "without a word"))
    return " ".join((said.replace(key, "(key)") if key else said).split())[:300]


def words_in(body: object, levels: int = LEVELS) -> str:
    """The message in the body of an error, however its server writes it; empty if there is none. A server between may
    hold what the provider said in ``metadata.raw``."""
    if isinstance(body, str):
        return body
    if not levels:
        return ""
    if isinstance(body, list):
        return "; ".join(filter(None, (words_in(one, levels - 1) for one in body[:3])))
    if not isinstance(body, Mapping):
        return ""
    names = ("error", "errors", "message", "detail", "msg")
    words = next(filter(None, (words_in(body.get(name), levels - 1) for name in names)), "")
    if words and isinstance(where := body.get("loc"), list):  # of a field that pydantic refuses
        words = f"{'.'.join(map(str, where[:LEVELS]))}: {words}"
    raw = member(body, "metadata", "raw")
    with suppress(ValueError, RecursionError):
        raw = json.loads(raw) if isinstance(raw, str) else raw
    return ": ".join(filter(None, (words, words_in(raw, levels - 1))))


def wait_in(words: str) -> float | None:
    """The seconds to wait that ``words`` name, or None."""
    found = WAIT.search(words)
    if not found:
        return None
    hours, minutes, rest, unit = found.groups()
    return int(hours or 0) * 3600 + int(minutes or 0) * 60 + float(rest or 0) * (0.001 if unit == "ms" else 1)


def retry_after(headers: Mapping[str, str]) -> float | None:
    """Seconds from Retry-After (seconds, a date or a timestamp) or OpenAI's retry-after-ms, or None."""
    for header, unit in (("retry-after-ms", 0.001), ("retry-after", 1.0)):
        try:
            seconds = float(headers[header].strip().removesuffix("s")) * unit
        except (KeyError, ValueError):
            continue
        if math.isfinite(seconds):
            return max(0.0, seconds - time.time() if seconds > EPOCH else seconds)
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
