"""Rolecall: a Redis Streams message bus for multi-agent LLM assistants."""

from rolecall.agent import Agent, Context, RoleInfo
from rolecall.commands import COMMANDS, Command, parse_command
from rolecall.config import Config, Role
from rolecall.envelope import Envelope
from rolecall.errors import ModelError, Reject, Retry, RolecallError, ToolError
from rolecall.mcp_client import ToolServer
from rolecall.models.model import Answer, Message
from rolecall.serving.command import ModelCommand
from rolecall.serving.external import ModelAt
from rolecall.settings import Terms
from rolecall.tools import Tool

__version__ = "0.1.0"

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
