"""Names and attributes of spans, by OpenTelemetry's semantic conventions for generative AI, which are in development
(version 1.41). What users and models say is not among them.
"""

from __future__ import annotations

from typing import Any

PROVIDERS = {"gemini": "gcp.gemini"}
"""Providers that the conventions know under another name."""
Attributes = dict[str, Any]


def turn(conversation: str, number: str) -> Attributes:
    """Of the span of a whole turn."""
    return {
        "gen_ai.operation.name": "invoke_workflow", "gen_ai.workflow.name": "rolecall",
        "gen_ai.conversation.id": conversation, "rolecall.turn": number,
    }  # fmt: skip


def agent(role: str, instance: str, conversation: str, number: str) -> Attributes:
    """Of the span of a hop: one handling of an envelope by an agent."""
    return {
        "gen_ai.operation.name": "invoke_agent", "gen_ai.agent.name": role, "gen_ai.conversation.id": conversation,
        "rolecall.turn": number, "rolecall.instance": instance,
    }  # fmt: skip


def model(name: str, max_tokens: int | None, temperature: float | None, form: bool) -> Attributes:
    """Of the span of a call of the model ``name@provider``; ``form`` asks for JSON."""
    found = {
        "gen_ai.operation.name": "chat", "gen_ai.request.stream": True, "gen_ai.request.max_tokens": max_tokens,
        "gen_ai.request.temperature": temperature, "gen_ai.output.type": "json" if form else "text", **_model(name),
    }  # fmt: skip
    return {key: value for key, value in found.items() if value is not None}


def answer(name: str, tokens_in: int, tokens_out: int, finish: str) -> Attributes:
    """Of the same span, once the model has answered."""
    return {
        "gen_ai.response.model": name.rpartition("@")[0] or name, "gen_ai.usage.input_tokens": tokens_in,
        "gen_ai.usage.output_tokens": tokens_out, "gen_ai.response.finish_reasons": (finish,),
    }  # fmt: skip


def tool(name: str, call: str) -> Attributes:
    """Of the span of a tool call."""
    return {
        "gen_ai.operation.name": "execute_tool", "gen_ai.tool.name": name, "gen_ai.tool.call.id": call,
        "gen_ai.tool.type": "function",
    }  # fmt: skip


def step(kind: str, name: str, key: str) -> Attributes:
    """Of the span of a step that is neither, and of the event of one that is replayed."""
    return {"rolecall.step.kind": kind, "rolecall.step.name": name, "rolecall.step.key": key}


def _model(name: str) -> Attributes:
    wire, _, provider = name.rpartition("@")
    return {"gen_ai.request.model": wire or name, "gen_ai.provider.name": PROVIDERS.get(provider, provider)}
