"""Calls of tools between providers that write them differently."""

from __future__ import annotations

import secrets
from collections.abc import Iterable
from typing import Any

import msgspec

from rolecall.models.model import Message, ToolCall


def new_call_id() -> str:
    """An id for a call whose provider gave it none."""
    return f"call_{secrets.token_hex(8)}"


def written(arguments: object) -> str:
    """The arguments of a call that the SDK has decoded, as the JSON they were."""
    return msgspec.json.encode(arguments or {}).decode()


def arguments_of(call: ToolCall) -> dict[str, Any]:
    """The arguments for a provider that wants an object; empty when the model wrote something else."""
    try:
        return msgspec.json.decode(call.arguments, type=dict[str, Any])
    except msgspec.DecodeError:
        return {}


def names_of_calls(messages: Iterable[Message]) -> dict[str, str]:
    """The tool's name by the call's id, for providers that want it with the result."""
    return {call.id: call.name for message in messages for call in message.calls}
