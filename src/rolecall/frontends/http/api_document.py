"""The OpenAPI document, with what FastAPI does not know: shapes of errors, streams, names for generated clients."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from http import HTTPStatus
from typing import Any

from fastapi import APIRouter, FastAPI
from fastapi.openapi.utils import get_openapi
from fastapi.routing import APIRoute

from rolecall.frontends.http.problems import OLLAMA_PREFIX, OPENAI_PREFIX, ProblemDetails

DESCRIPTION = """Conversations with the assistant, whole, streamed or fetched later; the same by OpenAI's and Ollama's
API; and what operators need. Send an API key as `Authorization: Bearer rk_…`, once there is one."""
TAGS = {
    "chat": "Ask, stream, come back later.",
    "OpenAI-compatible": "For any OpenAI client that takes a base URL. Errors are OpenAI's error objects.",
    "Ollama-compatible": "For clients that know only Ollama.",
    "operators": "Conversations, instances, queues and dead letters. For keys of operators.",
    "login": "For the web page.",
}
OPENAI_ERROR = {
    "title": "OpenAIError",
    "description": "An error as OpenAI's clients expect it.",
    "type": "object",
    "required": ["error"],
    "properties": {
        "error": {
            "type": "object",
            "required": ["message", "type", "param", "code"],
            "properties": {
                "message": {"type": "string"},
                "type": {"type": "string", "examples": ["invalid_request_error"]},
                "param": {"type": ["string", "null"], "examples": ["messages.0.role"]},
                "code": {"type": ["string", "null"], "examples": ["invalid_messages"]},
            },
        }
    },
}
OLLAMA_ERROR = {
    "title": "OllamaError",
    "description": "An error as Ollama's clients expect it.",
    "type": "object",
    "required": ["error"],
    "properties": {"error": {"type": "string"}},
}
ERRORS = {OPENAI_PREFIX: ("OpenAIError", "application/json"), OLLAMA_PREFIX: ("OllamaError", "application/json")}
PROBLEM = ("ProblemDetails", "application/problem+json")


def operation_id(route: APIRoute) -> str:
    """The name of an operation in generated clients: its module and its function."""
    return f"{route.endpoint.__module__.rpartition('.')[2]}_{route.name}"


api_router = partial(APIRouter, generate_unique_id_function=operation_id)
"""A router of the documented API."""


def describe(app: FastAPI) -> dict[str, Any]:
    """The document of ``app``; the same object every time."""
    if app.openapi_schema is None:
        tags = [{"name": name, "description": told} for name, told in TAGS.items()]
        found = get_openapi(
            title=app.title, version=app.version, description=DESCRIPTION, routes=app.routes, tags=tags,
            servers=[{"url": "/"}],
        )  # fmt: skip
        schemas = found["components"]["schemas"]
        schemas |= {"OpenAIError": OPENAI_ERROR, "OllamaError": OLLAMA_ERROR}
        schemas["ProblemDetails"] = ProblemDetails.model_json_schema()
        for unused in ("HTTPValidationError", "ValidationError"):
            schemas.pop(unused, None)
        for path, operation in _operations(found):
            _describe_errors(path, operation)
            _describe_streams(operation)
        app.openapi_schema = found
    return app.openapi_schema


def _operations(document: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    for path, item in document["paths"].items():
        for operation in item.values():
            yield path, operation


def _describe_errors(path: str, operation: dict[str, Any]) -> None:
    name, media_type = next((found for prefix, found in ERRORS.items() if path.startswith(prefix)), PROBLEM)
    responses = operation["responses"]
    if name != PROBLEM[0] and responses.pop("422", None):  # they know no 422
        responses.setdefault("400", {})
    if operation.get("security"):
        for status in ("401", "403") if "operators" in operation.get("tags", ()) else ("401",):
            responses.setdefault(status, {})
    schema = {"$ref": f"#/components/schemas/{name}"}
    for status, response in responses.items():
        if status >= "400":
            response["description"] = HTTPStatus(int(status)).phrase
            response["content"] = {media_type: {"schema": schema}}


def _describe_streams(operation: dict[str, Any]) -> None:
    """FastAPI describes the events of a stream as OpenAPI 3.2 does, in a document of 3.1."""
    for response in operation["responses"].values():
        for content in response.get("content", {}).values():
            if (item := content.pop("itemSchema", None)) is not None:
                content |= {"schema": {"type": "string"}, "x-item-schema": item}
