"""What the openai SDK raises, in this package's own errors."""

from __future__ import annotations

import email.utils
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from rolecall.errors import (
    ModelError,
    ModelRefused,
    ModelTimeout,
    ModelUnauthorised,
    ModelUnavailable,
    RateLimited,
)

if TYPE_CHECKING:
    from openai import APIError

NO_CREDIT = ("insufficient_quota", "billing_hard_limit_reached")
TOO_LONG = ("context_length_exceeded", "exceed_context_size_error")


def translated(error: Exception, name: str, url: str, key: str) -> ModelError:
    """What ``error`` means for the model ``name`` at ``url``; never shows ``key``."""
    import openai

    where = urlsplit(url).hostname
    if isinstance(error, openai.APITimeoutError):
        return ModelTimeout(f"{name}: {where} does not accept the connection in time")
    if isinstance(error, openai.APIConnectionError):
        return ModelUnavailable(f"{name}: no connection to {where}: {_root(error)}")
    if isinstance(error, openai.APIError):
        return _answered(error, name, str(where), _words(error.message, key))
    if isinstance(error, RuntimeError):
        return ModelUnavailable(f"{name}: {error}")
    return ModelUnavailable(f"{name}: {where} does not speak the OpenAI protocol: {type(error).__name__}")


def _answered(error: APIError, name: str, where: str, words: str) -> ModelError:
    status, kinds = _status(error), (error.code, error.type)
    if any(kind in NO_CREDIT for kind in kinds):
        return ModelUnauthorised(f"{name}: the account at {where} has no credit left")
    if any(kind in TOO_LONG for kind in kinds):
        return ModelRefused(f"{name}: the conversation is too long for this model: {words}")
    if status in (401, 403):
        # Without the provider's words, for some quote the key.
        return ModelUnauthorised(f"{name}: {where} refuses the key ({status}); check the key set for it")
    if status == 404:
        return ModelUnauthorised(f"{name}: {where} has no such model for this key; check the name")
    if status == 408:
        return ModelTimeout(f"{name}: {where} gave up waiting (408)")
    if status == 429 or "rate_limit_exceeded" in kinds:
        return RateLimited(f"{name}: {where} asks to wait: {words}", _retry_after(_headers(error)))
    if status in (400, 413, 415, 422):
        return ModelRefused(f"{name}: {where} refuses this request ({status}): {words}")
    return ModelUnavailable(f"{name}: {where} failed ({status or 'within the answer'}): {words}")


def _status(error: APIError) -> int:
    """The HTTP status; of an error object within a stream the one it names, else 0."""
    status = str(getattr(error, "status_code", None) or error.code)
    return int(status) if status.isdecimal() else 0


def _headers(error: APIError) -> Mapping[str, str]:
    response = getattr(error, "response", None)
    return response.headers if response is not None else {}


def _retry_after(headers: Mapping[str, str]) -> float | None:
    """Seconds, of either form of the header and of OpenAI's own in milliseconds."""
    for header, unit in (("retry-after-ms", 0.001), ("retry-after", 1.0)):
        try:
            return max(0.0, float(headers[header]) * unit)
        except (KeyError, ValueError):
            continue
    moment = email.utils.parsedate_tz(headers.get("retry-after", ""))
    return max(0.0, email.utils.mktime_tz(moment) - time.time()) if moment else None


def _words(message: str, key: str) -> str:
    return " ".join(message.replace(key, "(key)").split())[:300]


def _root(error: BaseException) -> str:
    """The innermost reason that says something: the SDK's own text is always "Connection error."."""
    said = str(error)
    while error.__cause__ or error.__context__:
        error = error.__cause__ or error.__context__ or error
        said = str(error) or said
    return said
