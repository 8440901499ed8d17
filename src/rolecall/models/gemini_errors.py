"""What google-genai raises, and the reasons Gemini stops for, in this package's own errors."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from rolecall.errors import ContentRefused, ModelError, ModelRefused, ModelUnauthorised, ModelUnavailable
from rolecall.models import refusal
from rolecall.models.refusal import Refusal

if TYPE_CHECKING:
    from google.genai.errors import APIError

WHOLE = {"STOP": "stop", "MAX_TOKENS": "length", "CONTINUATION": "length"}
REFUSED_CONTENT = (
    *("SAFETY", "RECITATION", "LANGUAGE", "BLOCKLIST", "PROHIBITED_CONTENT", "SPII", "MODEL_ARMOR", "ESCALATION"),
    *("IMAGE_SAFETY", "IMAGE_PROHIBITED_CONTENT", "IMAGE_RECITATION", "JAILBREAK"),
)
KEY_REASONS = ("API_KEY_INVALID", "API_KEY_SERVICE_BLOCKED", "API_KEY_EXPIRED", "ACCESS_TOKEN_EXPIRED")
TOO_LONG = re.compile(r"token count.*exceeds the maximum|exceeds the maximum number of tokens", re.IGNORECASE)
NO_CREDIT = re.compile(r"\blimit: 0\b|credits are depleted", re.IGNORECASE)
"""A quota of nothing, as for a model that is not in the free tier: waiting does not help."""


def translated(error: Exception, name: str, url: str, key: str) -> ModelError:
    """What ``error`` means for the model ``name`` at ``url``; never shows ``key``."""
    import httpx2
    from google.genai.errors import APIError

    where = refusal.host_of(url)
    if isinstance(error, APIError):
        return _answered(error, name, where, key)
    if isinstance(error, httpx2.TimeoutException):
        return refusal.not_accepted(name, where)
    if isinstance(error, httpx2.HTTPError):
        return refusal.unreachable(name, where, error)
    if isinstance(error, RuntimeError):
        return ModelUnavailable(f"{name}: {error}")
    return refusal.not_the_protocol(name, where, "Gemini", error)


def stopped(reason: str, name: str) -> ModelError:
    """What it means that the answer, or the question, ended for ``reason``, none of WHOLE."""
    if reason in REFUSED_CONTENT:
        return ContentRefused(f"{name}: the provider's content filter stopped this answer ({reason})")
    if reason == "PUP_LIMITED_DISABLED":
        return ModelUnauthorised(f"{name}: the provider has limited this account for what it was used for")
    if reason == "MISSING_THOUGHT_SIGNATURE":
        return ModelRefused(f"{name}: the provider misses what belongs to an earlier call of a tool ({reason})")
    return ModelUnavailable(f"{name}: the provider broke its answer off ({reason})")


def _answered(error: APIError, name: str, where: str, key: str) -> ModelError:
    details = _details(error)
    said = Refusal(
        name,
        where,
        error.code if isinstance(error.code, int) else 0,
        refusal.safe_words(error.message or error.status, key),
        _retry_after(error, details),
    )
    if any(detail.get("reason") in KEY_REASONS for detail in details):
        return said.unauthorised()
    if said.status == 429 and NO_CREDIT.search(str(error.message)):
        return said.no_credit()
    if said.status == 400 and TOO_LONG.search(said.words):
        return said.too_long()
    if error.status == "FAILED_PRECONDITION":
        # Where the account is or how it is paid for: another model may do, so it is not the request's fault.
        return ModelUnauthorised(f"{name}: {where} refuses this account: {said.words}")
    return said.error()


def _details(error: APIError) -> list[Mapping[str, Any]]:
    """What the provider says for machines; empty if it did not."""
    found: Any = error.details
    for part in ("error", "details"):
        found = found.get(part) if isinstance(found, dict) else None
    return [detail for detail in found if isinstance(detail, dict)] if isinstance(found, list) else []


def _retry_after(error: APIError, details: list[Mapping[str, Any]]) -> float | None:
    """Seconds, of the header or of what the body says in its place, such as 37s."""
    waits = (re.fullmatch(r"(\d+(?:\.\d+)?)s", str(detail.get("retryDelay"))) for detail in details)
    headers = getattr(error.response, "headers", None) or {}
    named = {str(header).lower(): str(value) for header, value in headers.items()}
    return next((float(wait[1]) for wait in waits if wait), refusal.retry_after(named))
