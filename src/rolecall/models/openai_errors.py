"""What the openai SDK raises, in this package's own errors."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING

from rolecall.errors import (
    ContentRefused,
    ImagesRefused,
    ModelError,
    ModelRefused,
    ModelUnavailable,
    NoSuchModel,
    RateLimited,
)
from rolecall.models.openai_names import RESPONSES
from rolecall.models.refusal import (
    Refusal,
    host_of,
    not_accepted,
    not_the_protocol,
    retry_after,
    safe_words,
    unreachable,
)

if TYPE_CHECKING:
    from openai import APIError

NO_CREDIT = {"insufficient_quota", "billing_hard_limit_reached", "billing_not_active"}
TOO_LONG = {"context_length_exceeded", "exceed_context_size_error"}
FILTERED = {"content_filter", "invalid_prompt"}
UNKNOWN = {"model_not_found", "model_not_available"}

SAYS_TOO_LONG = re.compile(r"(maximum|max|available) context|context (length|size|window)|prompt is too long", re.I)
SAYS_NO_IMAGES = re.compile(r"image|vision|multi-?modal|mmproj", re.I)


def translated(error: Exception, name: str, url: str, key: str, images: bool = False) -> ModelError:
    """What ``error`` means for the model ``name`` at ``url``; never shows ``key``. ``images``: some were sent."""
    import openai

    where = host_of(url)
    if isinstance(error, openai.APITimeoutError):
        return not_accepted(name, where)
    if isinstance(error, openai.APIConnectionError):
        return unreachable(name, where, error)
    if isinstance(error, openai.APIError):
        kinds = {str(kind) for kind in (error.code, error.type) if kind}
        said = Refusal(name, where, _status(error), safe_words(_words(error), key), retry_after(_headers(error)))
        return _by_kind(said, kinds) or _by_words(said, images) or said.error()
    if isinstance(error, RuntimeError):
        return ModelUnavailable(f"{name}: {error}")
    return not_the_protocol(name, where, "OpenAI", error)


def _by_kind(said: Refusal, kinds: set[str]) -> ModelError | None:
    """What the code within the answer says; it stands where the status is missing, and says more than it."""
    if kinds & NO_CREDIT:
        return said.no_credit()
    if kinds & TOO_LONG:
        return said.too_long()
    if kinds & FILTERED or any("policy" in kind for kind in kinds):
        return ContentRefused(f"{said.model}: the provider's content filter stopped this question: {said.words}")
    if kinds & UNKNOWN:
        return _unknown(said)
    if "rate_limit_exceeded" in kinds:
        return RateLimited(f"{said.model}: {said.where} asks to wait: {said.words}", said.retry_after)
    if not said.status and any(kind.startswith("invalid_") or "image" in kind for kind in kinds):
        return ModelRefused(f"{said.model}: {said.where} refuses this request: {said.words}")
    return None


def _by_words(said: Refusal, images: bool) -> ModelError | None:
    """Servers other than OpenAI's tell these apart by their words only, and not all by 400."""
    if images and said.status in (400, 404, 415, 422, 500) and SAYS_NO_IMAGES.search(said.words):
        return ImagesRefused(f"{said.model}: takes no images, or not these: {said.words}")
    if said.status in (400, 413) and SAYS_TOO_LONG.search(said.words):
        return said.too_long()
    return _unknown(said) if said.status == 404 else None


def _unknown(said: Refusal) -> NoSuchModel:
    if "v1/responses" in said.words:
        return NoSuchModel(f"{said.model}: needs the Responses API: name it {RESPONSES}{said.model}")
    return NoSuchModel(f"{said.model}: {said.where} has no such model for this key; check the name: {said.words}")


def _status(error: APIError) -> int:
    """The HTTP status; of an error object within a stream the one it names, else 0."""
    status = str(getattr(error, "status_code", None) or error.code)
    return int(status) if status.isdecimal() else 0


def _words(error: APIError) -> str:
    """The server's own, where it sent any: the SDK's hold the whole body."""
    said = error.body.get("message") if isinstance(error.body, dict) else None
    return said if isinstance(said, str) and said else error.message


def _headers(error: APIError) -> Mapping[str, str]:
    response = getattr(error, "response", None)
    return response.headers if response is not None else {}
