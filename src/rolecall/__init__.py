"""Rolecall: a Redis Streams message bus for multi-agent LLM assistants, and the assistant that runs on it.

Names are imported when they are first used, so that ``import rolecall`` costs next to nothing.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rolecall.agent.agent import Agent as Agent
    from rolecall.agent.agent_services import RoleInfo as RoleInfo
    from rolecall.agent.calls import CallReply as CallReply
    from rolecall.agent.context import Context as Context
    from rolecall.agent.mcp import ToolServer as ToolServer
    from rolecall.agent.role import Role as Role
    from rolecall.agent.tools import Tool as Tool
    from rolecall.bus.commands import COMMANDS as COMMANDS
    from rolecall.bus.commands import Command as Command
    from rolecall.bus.commands import Language as Language
    from rolecall.bus.commands import parse_command as parse_command
    from rolecall.bus.envelope import Envelope as Envelope
    from rolecall.bus.schedule.phrase import split_when as split_when
    from rolecall.bus.schedule.schedules import Schedule as Schedule
    from rolecall.bus.schedule.timing import known_zone as known_zone
    from rolecall.client import connect as connect
    from rolecall.client import run as run
    from rolecall.config import Config as Config
    from rolecall.errors import CallFailed as CallFailed
    from rolecall.errors import ModelError as ModelError
    from rolecall.errors import Reject as Reject
    from rolecall.errors import Retry as Retry
    from rolecall.errors import RolecallError as RolecallError
    from rolecall.errors import ToolError as ToolError
    from rolecall.models.model import Answer as Answer
    from rolecall.models.model import Message as Message
    from rolecall.serving.external import ModelAt as ModelAt
    from rolecall.serving.spec import ModelCommand as ModelCommand
    from rolecall.settings import Terms as Terms
    from rolecall.version import __version__ as __version__

__all__ = [
    "Agent",
    "Answer",
    "Config",
    "Context",
    "Envelope",
    "Message",
    "ModelError",
    "Reject",
    "Retry",
    "Role",
    "RolecallError",
    "Tool",
    "ToolServer",
    "connect",
    "run",
]

_PUBLIC = {
    "Agent": "agent.agent",
    "Answer": "models.model",
    "Config": "config",
    "connect": "client",
    "Context": "agent.context",
    "Envelope": "bus.envelope",
    "Message": "models.model",
    "ModelError": "errors",
    "Reject": "errors",
    "Retry": "errors",
    "Role": "agent.role",
    "RolecallError": "errors",
    "run": "client",
    "Tool": "agent.tools",
    "ToolServer": "agent.mcp",
}
_ALSO = {
    "__version__": "version",
    "CallFailed": "errors",
    "CallReply": "agent.calls",
    "Command": "bus.commands",
    "COMMANDS": "bus.commands",
    "ModelAt": "serving.external",
    "ModelCommand": "serving.spec",
    "known_zone": "bus.schedule.timing",
    "Language": "bus.commands",
    "parse_command": "bus.commands",
    "RoleInfo": "agent.agent_services",
    "Schedule": "bus.schedule.schedules",
    "split_when": "bus.schedule.phrase",
    "Terms": "settings",
    "ToolError": "errors",
}
"""Settings and types that few applications need; documented where they are used."""


def __getattr__(name: str) -> Any:
    module = _PUBLIC.get(name) or _ALSO.get(name)
    if module is None:
        raise AttributeError(f"module 'rolecall' has no attribute {name!r}")
    value = globals()[name] = getattr(import_module(f"rolecall.{module}"), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_PUBLIC, *_ALSO})
