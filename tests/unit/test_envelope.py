"""The envelope: a value, its routing, its encoding, its limits."""

from __future__ import annotations

import json
import re
import string
from typing import Any

import msgspec
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from rolecall.bus.envelope import (
    CUT_MARK,
    MAX_TEXT_BYTES,
    Envelope,
    check_conversation,
    cut,
    decode,
    encode,
    encode_part,
    short_turn_id,
)
from rolecall.errors import DecodeError, EnvelopeTooLarge, NewerVersion, RolecallError, UnknownRole
from rolecall.models.model import Answer

text = st.text(alphabet=st.characters(codec="utf-8"), max_size=200)
json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | text,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(text, inner, max_size=4),
    max_leaves=12,
)
conversations = st.text(alphabet=st.characters(exclude_categories=("Cs", "Cc")), min_size=1, max_size=60)


def question(**options: Any) -> Envelope:
    return Envelope(conversation="a", payload={"text": "hi", "lang": "en"}, **options)


@given(conversations, st.dictionaries(text, json_values, max_size=5), st.integers(0, 100), text)
def test_what_is_encoded_is_decoded_the_same(
    conversation: str, payload: dict[str, Any], priority: int, reply_to: str
) -> None:
    envelope = Envelope(conversation=conversation, payload=payload, priority=priority, reply_to=reply_to)
    assert decode(encode(envelope)) == envelope


@given(st.binary(max_size=300))
@example(b"")
@example(b"null")
@example(b'{"conversation":"a","payload":{"a":NaN}}')
@example(b'{"conversation":"a","payload":' + b"[" * 5000)
@example(b'{"conversation":"a","payload":{"a":"\\ud800"}}')
def test_bytes_from_anywhere_are_an_envelope_or_a_decode_error(raw: bytes) -> None:
    try:
        assert isinstance(decode(raw), Envelope)
    except DecodeError as error:
        assert error.raw == raw


@pytest.mark.parametrize(
    "changes",
    [
        {"conversation": ""}, {"conversation": "x" * 201}, {"conversation": "a\nb"}, {"payload": []}, {"payload": None},
        {"priority": "high"}, {"route": "manager"}, {"conversation": None}, {"hops": "1"},
    ],
)  # fmt: skip
def test_a_field_that_is_wrong_is_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(DecodeError):
        decode(json.dumps({"conversation": "a", "payload": {}, **changes}).encode())


def test_a_field_that_this_version_does_not_know_is_carried_on_over_hops_and_answers() -> None:
    raw = json.dumps({"conversation": "a", "payload": {"text": "hi"}, "surprise": {"deep": [1]}}).encode()
    envelope = decode(raw, turn="7", hops=1)
    assert (envelope.text, envelope.turn) == ("hi", "7")
    for later in (
        envelope,
        envelope.via("lang", "echo"),
        envelope.via("lang", "echo").forward(),
        envelope.reply("done"),
    ):
        assert json.loads(encode(later))["surprise"] == {"deep": [1]}
        assert decode(encode(later)).others == {"surprise": {"deep": [1]}}


def test_an_unknown_field_is_as_limited_as_the_payload() -> None:
    for deep in ("[" * 40 + "]" * 40, "[" * 5000 + "]" * 5000):
        with pytest.raises(DecodeError):
            decode(b'{"conversation":"a","payload":{},"surprise":' + deep.encode() + b"}")


def test_an_envelope_of_a_later_version_is_told_from_garbage() -> None:
    with pytest.raises(NewerVersion, match="version 2"):
        decode(b'{"conversation":"a","payload":{},"v":2,"surprise":1}')


def test_what_later_versions_put_into_meta_is_carried_on() -> None:
    raw = b'{"conversation":"a","payload":{},"meta":{"later":[1]}}'
    assert decode(encode(decode(raw).via("echo"))).meta == {"later": [1]}


@pytest.mark.parametrize(("depth", "fine"), [(30, True), (33, False), (200, False)])
def test_a_payload_may_be_nested_so_deep_and_no_deeper(depth: int, fine: bool) -> None:
    raw = b'{"conversation":"a","payload":{"x":' + b"[" * depth + b"]" * depth + b"}}"
    if fine:
        assert decode(raw)
    else:
        with pytest.raises(DecodeError):
            decode(raw)


def test_limits_are_of_bytes_not_of_characters() -> None:
    assert encode(Envelope(conversation="a", payload={"text": "é" * 32_000}))
    with pytest.raises(EnvelopeTooLarge, match="64 kB"):
        encode(Envelope(conversation="a", payload={"text": "é" * 33_000}))
    with pytest.raises(EnvelopeTooLarge, match="262,144"):
        encode(Envelope(conversation="a", payload={"text": "\x01" * 60_000}))
    with pytest.raises(DecodeError, match="262,144"):
        decode(b" " * 262_145)


def test_what_json_cannot_hold_is_a_clear_error() -> None:
    for value in ("\ud800", object(), {1, 2}.__iter__()):
        with pytest.raises(RolecallError, match="JSON"):
            encode(Envelope(conversation="a", payload={"text": value}))


def test_a_turn_and_its_hops_travel_beside_the_json() -> None:
    envelope = decode(encode(question()), turn="7", hops=3)
    assert (envelope.turn, envelope.hops) == ("7", 3)


def test_texts_that_were_merged_into_a_waiting_turn_are_joined() -> None:
    assert decode(encode(question()), parts=b'"more","and \\"more\\""').text == 'hi\nmore\nand "more"'
    with pytest.raises(DecodeError):
        decode(encode(question()), parts=b'"broken')


def test_via_replaces_the_route_and_forward_follows_it() -> None:
    first = question(route=("old",)).via("lang", "echo")
    assert (first.role, first.route, first.hops) == ("lang", ("echo",), 1)
    second = first.forward(lang="es")
    assert (second.role, second.route, second.hops) == ("echo", (), 2)
    assert second.payload == {"text": "hi", "lang": "es"}
    with pytest.raises(UnknownRole, match="the route has no further role"):
        second.forward()


def test_an_envelope_is_never_changed_only_replaced() -> None:
    envelope = question()
    envelope.via("lang", lang="es")
    envelope.reply("x")
    assert envelope.payload == {"text": "hi", "lang": "en"}
    with pytest.raises(AttributeError):
        envelope.role = "x"  # type: ignore[misc]


@pytest.mark.parametrize("role", ["", "A", "a b", "../x", "a@", "a@b c", "x" * 41, "-a", "a\n", "é"])
def test_what_can_be_no_role_is_refused(role: str) -> None:
    with pytest.raises(UnknownRole, match="is not a role name: expected"):
        question().via(role)


def test_via_needs_somewhere_to_go() -> None:
    with pytest.raises(UnknownRole, match="at least one"):
        question().via()


def test_a_role_may_be_one_process_of_it() -> None:
    assert question().via("echo@host:1~aaaaaa").role == "echo@host:1~aaaaaa"


def test_a_reply_ends_the_route_and_keeps_where_it_goes() -> None:
    reply = question(reply_to="telegram", attempt=3).via("lang", "echo").reply("hello", extra=1)
    assert reply.answered
    assert (reply.route, reply.reply_to, reply.attempt) == ((), "telegram", 0)
    assert reply.payload == {"text": "hello", "extra": 1}


def test_a_reply_takes_an_answer_with_its_model_and_cost() -> None:
    payload = question().reply(Answer("hello", "m@test", 3, 5)).payload
    assert (payload["text"], payload["model"], payload["tokens_out"]) == ("hello", "m@test", 5)


@given(st.text(alphabet=string.ascii_letters + "é😀\u0301", min_size=0, max_size=50), st.integers(1, 4000))
def test_an_answer_is_cut_to_its_limit_with_a_visible_mark(piece: str, times: int) -> None:
    whole = piece * times
    shown = cut(whole)
    assert len(shown.encode()) <= MAX_TEXT_BYTES
    if len(whole.encode()) <= MAX_TEXT_BYTES:
        assert shown == whole
    else:
        assert shown.endswith(CUT_MARK)
        assert whole.startswith(shown.removesuffix(CUT_MARK))


def test_a_cut_answer_always_fits_an_envelope() -> None:
    assert encode(question().reply("\ud800" + "x" * 100_000))


@pytest.mark.parametrize("conversation", ["telegram:42:7", "a b", "é", "日本", "a\u200bb", "x" * 200])
def test_a_conversation_may_have_any_printable_name(conversation: str) -> None:
    assert check_conversation(conversation) == conversation


def test_the_id_in_an_apology_names_the_turn_but_not_the_user() -> None:
    shown = short_turn_id("telegram:4242", "17")
    assert shown.endswith("-17")
    assert "4242" not in shown
    assert len({short_turn_id(f"telegram:{n}", "1") for n in range(500)}) == 500


def test_envelopes_read_well_with_redis_cli() -> None:
    fields = set(msgspec.json.decode(encode(Envelope(conversation="a", payload={"text": "hi"}))))
    assert fields == {"conversation", "payload", "id", "created"}


def test_images_and_files_of_merged_messages_follow_each_other() -> None:
    first = Envelope(conversation="a", payload={"text": "", "images": ["i1"], "lang": "en"})
    second = Envelope(conversation="a", payload={"text": "look\nhere", "images": ["i2"], "files": ["f1"]})
    third = Envelope(conversation="a", payload={"text": "ok", "images": "no list"})
    parts = [encode_part(envelope) for envelope in (second, third)]
    assert not [part for part in parts if b"\n" in part]
    merged = decode(encode(first), parts=b",\n".join(parts))
    assert merged.payload == {"text": "look\nhere\nok", "images": ["i1", "i2"], "files": ["f1"], "lang": "en"}


@pytest.mark.parametrize(
    "parts", [b"1", b"null", b'{"text":1}', b'{"images":1}', b'{"images":[' + b"[" * 40 + b"]" * 40 + b"]}"]
)
def test_what_is_no_part_is_a_decode_error(parts: bytes) -> None:
    with pytest.raises(DecodeError):
        decode(encode(question()), parts=parts)


@pytest.mark.parametrize("answer", [None, 5, {"answer": "hi"}, object(), ["hi"]])
def test_a_reply_says_what_it_expects(answer: object) -> None:
    with pytest.raises(TypeError, match="expected a text or a model's Answer"):
        question().reply(answer)
    with pytest.raises(TypeError, match="expected a text"):
        question().reply("hi", text=answer)


def test_what_no_json_can_hold_is_named_by_its_field() -> None:
    for envelope, field in (
        (question().via("echo", thing=object()), "payload['thing']: Encoding objects of type object"),
        (question(meta={"note": "\ud800"}), "meta['note']: "),
    ):
        with pytest.raises(RolecallError, match=re.escape(f"cannot be written as JSON: {field}")):
            encode(envelope)


@pytest.mark.parametrize("role", [Envelope, None, 5])
def test_a_route_that_is_no_text_is_refused_as_one_that_is_no_name(role: Any) -> None:
    with pytest.raises(UnknownRole, match="is not a role name: expected up to 40 characters"):
        question().via(role)
