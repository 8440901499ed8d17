"""What the ollama SDK raises, in this package's own errors."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from rolecall.errors import ModelError, ModelUnavailable, NoSuchModel
from rolecall.models import refusal
from rolecall.models.refusal import Refusal

if TYPE_CHECKING:
    from ollama import ResponseError

TOO_LONG = re.compile(r"exceeds? the (available )?context|exceed_context_size|context (length|size) exceeded", re.I)


def translated(error: Exception, name: str, url: str, key: str) -> ModelError:
    """What ``error`` means for the model ``name`` at ``url``; never shows ``key``."""
    import httpx
    from ollama import ResponseError

    where = refusal.host_of(url)
    if isinstance(error, ResponseError):
        return _answered(error, name, where, key)
    if isinstance(error, httpx.TimeoutException):
        return refusal.not_accepted(name, where)
    # The SDK makes a ConnectionError of some of httpx's errors, with words of its own.
    if isinstance(error, (httpx.HTTPError, OSError)):
        return refusal.unreachable(name, where, error)
    if isinstance(error, RuntimeError):
        return ModelUnavailable(f"{name}: {error}")
    return refusal.not_the_protocol(name, where, "Ollama", error)


def _answered(error: ResponseError, name: str, where: str, key: str) -> ModelError:
    words = refusal.safe_words(error.error, key)
    said = Refusal(name, where, max(0, error.status_code), words, _retry_after(error))
    if said.status == 404:
        model = name.rpartition("@")[0]
        return NoSuchModel(f"{name}: {where} has no such model; `ollama pull {model}` fetches it there")
    if said.status in (0, 400, 413, 500) and TOO_LONG.search(words):
        return said.too_long()
    return said.error()


def _retry_after(error: ResponseError) -> float | None:
    """The SDK drops the headers, but not the error of httpx that it raised its own for."""
    headers = getattr(getattr(error.__context__, "response", None), "headers", None)
    return None if headers is None else refusal.retry_after(headers)
