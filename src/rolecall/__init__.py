"""Rolecall: a Redis Streams message bus for multi-agent LLM assistants."""

from rolecall.agent.agent import Agent
from rolecall.agent.context import Context, RoleInfo
from rolecall.agent.mcp import ToolServer
from rolecall.agent.tools import Tool
from rolecall.bus.commands import COMMANDS, Command, parse_command
from rolecall.bus.envelope import Envelope
from rolecall.config import Config, Role
from rolecall.errors import ModelError, Reject, Retry, RolecallError, ToolError
from rolecall.models.model import Answer, Message
from rolecall.serving.balance import ModelAt
from rolecall.serving.spec import ModelCommand
from rolecall.settings import Terms
from rolecall.version import __version__ as __version__

__all__ = [
    "COMMANDS",
    "Agent",
    "Answer",
    "Command",
    "Config",
    "Context",
    "Envelope",
    "Message",
    "ModelAt",
    "ModelCommand",
    "ModelError",
    "Reject",
    "Retry",
    "Role",
    "RoleInfo",
    "RolecallError",
    "Terms",
    "Tool",
    "ToolError",
    "ToolServer",
    "parse_command",
]
