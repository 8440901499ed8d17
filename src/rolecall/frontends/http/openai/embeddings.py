"""Embeddings: texts to vectors, by the role ``embedding``."""

from __future__ import annotations

import base64
import secrets
import struct
from collections.abc import Sequence
from typing import Any, Literal

from fastapi import Request, Response
from pydantic import BaseModel, ConfigDict, Field

from rolecall.bus.client_request import EmbeddedTexts, TextsToEmbed, load_value, store_value
from rolecall.frontends.http.api_document import api_router
from rolecall.frontends.http.auth import Principal, User
from rolecall.frontends.http.intake import ChatRequest, conversation_of
from rolecall.frontends.http.openai.pending_answer import admitted
from rolecall.frontends.http.openai.request_fields import AUTO, Items
from rolecall.frontends.http.problems import Problem, problem_responses, text
from rolecall.frontends.http.services import Services, ServicesDep

ROLE = "embedding"
MAX_TEXTS = 2048
MAX_BYTES = 4 * 1024 * 1024
LANES = 64
"""Conversations that the requests of a key are spread over: they have no order among themselves, and one of its own for
each would be a transcript each."""
router = api_router(prefix="/v1", tags=["OpenAI-compatible"])


class EmbeddingBody(BaseModel):
    """Texts to embed. Unknown fields are ignored."""

    model_config = ConfigDict(extra="allow", json_schema_extra={"examples": [{"model": "auto", "input": "Hello!"}]})

    input: str | Items[str] | Items[int] | Items[list[int]]
    model: str = Field(AUTO, max_length=200, description="EMBEDDING_MODEL, with or without its provider, or auto")
    encoding_format: Literal["float", "base64"] | None = None
    dimensions: int | None = Field(None, ge=1, le=65_536)
    user: str | None = None

    def texts(self) -> tuple[str, ...]:
        """What to embed. Raises Problem (400)."""
        given = [self.input] if isinstance(self.input, str) else self.input
        texts = [one for one in given if isinstance(one, str)]
        if len(texts) < len(given):
            raise Problem(400, text("tokens_given"), "unsupported_parameter", param="input")
        return checked_texts(texts)


@router.post("/embeddings", summary="Create embeddings", response_model=None,
             responses=problem_responses(400, 403, 404, 413, 429, 502))  # fmt: skip
async def embed(body: EmbeddingBody, request: Request, response: Response, services: ServicesDep, who: User) -> Any:
    """The vectors of up to 2,048 texts, in their order, as floats or, with `encoding_format` `base64`, as
    little-endian floats of 32 bits."""
    found = await vectors_of(
        services, request, response, who, body.model, body.texts(), body.dimensions, body.user or ""
    )
    written = _base64 if body.encoding_format == "base64" else floats_of
    data = [{"object": "embedding", "index": n, "embedding": written(one)} for n, one in enumerate(found.vectors)]
    usage = {"prompt_tokens": found.tokens, "total_tokens": found.tokens}
    return {"object": "list", "data": data, "model": services.application.embedding_model, "usage": usage}


async def vectors_of(
    services: Services, request: Request, response: Response, who: Principal, model: str, texts: tuple[str, ...],
    dimensions: int | None, end_user: str = "",
) -> EmbeddedTexts:  # fmt: skip
    """The vectors of ``texts``. Raises Problem."""
    _check_model(services, model)
    conversation = conversation_of(who, f"embeddings-{secrets.randbelow(LANES)}")
    stored = await store_value(services.bus, conversation, TextsToEmbed(texts, dimensions))
    asked = ChatRequest(
        f"{len(texts)} texts to embed", conversation, ROLE, end_user=end_user, commands=False,
        attached={"texts": stored},
    )  # fmt: skip
    async with admitted(services, who, asked, None, {}, kept=False) as pending:
        response.headers.update(pending.headers)
        task = await pending.answer(services, request)
    found = await load_value(services.bus, conversation, task.text, EmbeddedTexts)
    if found is None:
        raise Problem(502, text("no_embeddings"), "failed")
    return found


def checked_texts(texts: Sequence[str]) -> tuple[str, ...]:
    """``texts``, if that many of that length can be embedded. Raises Problem (400)."""
    if not texts or not all(texts) or len(texts) > MAX_TEXTS:
        raise Problem(400, text("bad_texts", count=MAX_TEXTS), "invalid_request", param="input")
    if sum(len(one.encode("utf-8", "replace")) for one in texts) > MAX_BYTES:
        raise Problem(400, text("texts_too_long", limit=MAX_BYTES // 1024**2), "text_too_long", param="input")
    return tuple(texts)


def _check_model(services: Services, given: str) -> None:
    """Raise Problem (404) unless ``given`` is the model of vectors."""
    model = services.application.embedding_model
    if not model or services.application.role(ROLE) is None:
        raise Problem(404, text("no_embeddings_here"), "model_not_found", param="model")
    if given not in (AUTO, model, model.rpartition("@")[0]):
        detail = text("model_not_found", name=repr(given[:100]), models=model)
        raise Problem(404, detail, "model_not_found", param="model")


def _base64(vector: bytes) -> str:
    return base64.b64encode(vector).decode()


def floats_of(vector: bytes) -> tuple[float, ...]:
    """A stored vector as numbers."""
    return struct.unpack(f"<{len(vector) // 4}f", vector)
