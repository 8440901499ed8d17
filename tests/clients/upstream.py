"""A provider behind the server that every client is tried on: it does what a good model would do, always the same."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from tests.http.upstream import Upstream


def example(schema: dict[str, Any], root: dict[str, Any] | None = None) -> Any:
    """A value that matches ``schema``, as far as those of clients go."""
    root = schema if root is None else root
    if "$ref" in schema:
        found: Any = root
        for name in str(schema["$ref"]).removeprefix("#/").split("/"):
            found = found[name]
        return example(found, root)
    for name in ("anyOf", "oneOf", "allOf"):
        if schema.get(name):
            return example(schema[name][0], root)
    if "const" in schema or schema.get("enum"):
        return schema.get("const", (schema.get("enum") or [None])[0])
    kind = schema.get("type", "object" if "properties" in schema else "string")
    if kind == "object":
        return {name: example(one, root) for name, one in schema.get("properties", {}).items()}
    if kind == "array":
        return [example(schema.get("items", {"type": "string"}), root)]
    return {"integer": 3, "number": 0.5, "boolean": True, "null": None}.get(str(kind), "Rome")


class ClientsUpstream(Upstream):
    """Calls the first tool when it is asked for the weather or has to call one; answers in the form that is asked for;
    else repeats what the user said."""

    def _deltas(self, body: dict[str, Any]) -> Iterator[tuple[dict[str, Any], str | None]]:
        last, tools = body["messages"][-1], body.get("tools") or []
        asked = "weather" in str(last["content"]) and last["role"] == "user"
        if tools and (asked or body.get("tool_choice") == "required"):
            function = tools[0]["function"]
            arguments = json.dumps(example(function["parameters"]))
            call = {"index": 0, "id": "call_1", "type": "function"}
            yield {"tool_calls": [{**call, "function": {"name": function["name"], "arguments": ""}}]}, None
            yield {"tool_calls": [{"index": 0, "function": {"arguments": arguments}}]}, None
            yield {}, "tool_calls"
            return
        form = body.get("response_format") or {}
        schema = form.get("json_schema", {}).get("schema", {})
        if form:
            said = json.dumps(example(schema)) if schema.get("properties") else '{"city": "Rome", "people": 3}'
        elif last["role"] == "tool":
            said = f"The tool says {last['content']}"
        else:
            said = f"You said {last['content']}"
        for piece in (said[: len(said) // 2], said[len(said) // 2 :]):
            yield {"content": piece}, None
        yield {}, "stop"
