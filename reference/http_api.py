"""The HTTP API: every route with its parameters, bodies and answers, from the OpenAPI document."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from reference.markdown import code, sentence, table
from rolecall.frontends.http.app import build
from rolecall.settings import Settings

HEAD = """\
# HTTP API

Generated from the OpenAPI document, which a running server has at `/openapi.json`. [The HTTP API](../http.md), [the
OpenAI-compatible API](../openai.md) and [Operations](../operators.md) show how it is used. A fault is
`application/problem+json`, below `/v1` in OpenAI's form.
"""
Json = Mapping[str, Any]


def document() -> Json:
    """The OpenAPI document of an application that is not started."""

    def never() -> Any:
        raise NotImplementedError

    found: Json = build(never, Settings()).openapi()
    return found


def page() -> str:
    """The page."""
    whole, lines, tag = document(), [HEAD], ""
    for path, method, operation in operations(whole):
        title = operation.get("tags", ["other"])[0]
        if title != tag:
            lines, tag = [*lines, f"## {title.capitalize()}", ""], title
        lines += [f"### {method.upper()} {path}", "", operation.get("summary", ""), ""]
        lines += [operation.get("description", "").replace("``", "`"), *inputs(operation), *answers(operation)]
    lines += ["## Schemas", ""]
    for name, schema in sorted(whole["components"]["schemas"].items()):
        lines += [f"### {name}", "", sentence(schema.get("description", "")), *fields(schema)]
    return "\n".join(lines).rstrip() + "\n"


def operations(whole: Json) -> Iterator[tuple[str, str, Json]]:
    """Path, method and operation, those of one tag together."""
    found = [(path, method, one) for path, methods in whole["paths"].items() for method, one in methods.items()]
    order = list(dict.fromkeys(one.get("tags", ["other"])[0] for _, _, one in found))
    yield from sorted(found, key=lambda item: order.index(item[2].get("tags", ["other"])[0]))


def inputs(operation: Json) -> list[str]:
    """Parameters, and the body's schema."""
    rows = [
        (code(one["name"]), one["in"], "yes" if one.get("required") else "", kind(one.get("schema", {})),
         sentence(one.get("description", "")))
        for one in operation.get("parameters", ())
    ]  # fmt: skip
    lines = table(("parameter", "in", "required", "type", "meaning"), rows)
    for media, content in operation.get("requestBody", {}).get("content", {}).items():
        lines += [f"Body: {kind(content.get('schema', {}))} as `{media}`.", ""]
    return lines


def answers(operation: Json) -> list[str]:
    """Status, meaning and schema of each answer."""
    rows = []
    for status, one in sorted(operation.get("responses", {}).items()):
        kinds = {kind(content.get("schema", {})) for content in one.get("content", {}).values()} - {""}
        rows.append((code(status), sentence(one.get("description", "")), " · ".join(sorted(kinds))))
    return table(("status", "meaning", "body"), rows)


def fields(schema: Json) -> list[str]:
    """The fields of an object."""
    required = schema.get("required", ())
    rows = [
        (code(name), kind(one), "yes" if name in required else "", sentence(one.get("description", "")))
        for name, one in schema.get("properties", {}).items()
    ]
    return table(("field", "type", "required", "meaning"), rows)


def kind(schema: Json) -> str:
    """A schema in a few words, with links to the named ones."""
    if "$ref" in schema:
        name = schema["$ref"].rpartition("/")[2]
        return f"[{name}](#{name.lower()})"
    if choices := schema.get("anyOf") or schema.get("oneOf") or schema.get("allOf"):
        return " or ".join(dict.fromkeys(filter(None, map(kind, choices))))
    if "enum" in schema:
        return code(*map(str, schema["enum"]))
    if schema.get("type") == "array":
        return f"list of {kind(schema.get('items', {})) or 'any'}"
    return str(schema.get("type", ""))
