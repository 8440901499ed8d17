"""JSON schemas that clients send, some of them made to keep a process busy."""

from __future__ import annotations

import time
from typing import Any

import pytest

from rolecall.bus import client_request
from rolecall.bus.client_request import SchemaTooSlow, is_schema, schema_mismatch

EVIL = "^(a+)+$"
LONG = "a" * 40 + "!"
DOUBLED: dict[str, Any] = {"a0": {}} | {f"a{n}": {"allOf": [{"$ref": f"#/$defs/a{n - 1}"}] * 2} for n in range(1, 41)}


@pytest.mark.parametrize(
    ("schema", "value"),
    [
        ({"properties": {"a": {"pattern": EVIL}}}, {"a": LONG}),
        ({"properties": {"a": {"$schema": "http://json-schema.org/draft-07/schema#", "pattern": EVIL}}}, {"a": LONG}),
        ({"patternProperties": {EVIL: {}}, "additionalProperties": False}, {LONG: 1}),
        ({"allOf": [{"patternProperties": {EVIL: {}}}], "unevaluatedProperties": False}, {LONG: 1}),
        ({"pattern": EVIL}, LONG),
        ({"uniqueItems": True}, [str(n) if n % 2 else [n] for n in range(20_000)]),
    ],
)
def test_a_schema_cannot_make_its_check_slow(schema: dict[str, Any], value: object) -> None:
    assert is_schema(schema)
    began = time.process_time()
    assert schema_mismatch(schema, value) == ""
    assert time.process_time() - began < 2.0


def test_a_check_that_would_take_forever_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client_request, "ANSWER_SECONDS", 0.2)
    monkeypatch.setattr(client_request, "SCHEMA_SECONDS", 0.2)
    with pytest.raises(SchemaTooSlow):
        schema_mismatch({"$defs": DOUBLED, "$ref": "#/$defs/a40"}, {})
    assert not is_schema({"allOf": [{"type": "string"}] * 50_000})


@pytest.mark.parametrize(
    ("schema", "value", "why"),
    [
        ({"type": "object", "properties": {"a": {"type": "string"}}}, {"a": 1}, "a: 1 is not of type 'string'"),
        ({"additionalProperties": False}, {"a": 1}, "Additional properties are not allowed ('a' was unexpected)"),
        ({"uniqueItems": True}, [1, {"b": 1, "c": 2}, {"c": 2, "b": 1}], "it has the same item twice"),
        (
            {"$defs": {"n": {"type": "number"}}, "items": {"$ref": "#/$defs/n"}},
            [1, "x"],
            "1: 'x' is not of type 'number'",
        ),
    ],
)
def test_what_does_not_match_is_said_in_words(schema: dict[str, Any], value: object, why: str) -> None:
    assert schema_mismatch(schema, value) == why


@pytest.mark.parametrize("wrong", [{"type": 5}, {"properties": {"a": {"required": "b"}}}, {"pattern": "("}])
def test_what_is_no_schema_is_none(wrong: dict[str, Any]) -> None:
    assert not is_schema(wrong)
