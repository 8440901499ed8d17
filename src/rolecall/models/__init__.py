"""Language models behind one streaming protocol."""

from rolecall.models.model import (
    Answer,
    Caller,
    Delta,
    Done,
    Message,
    Model,
    ModelEvent,
    Request,
    Retracted,
    Spoke,
    ToolCall,
    ToolSpec,
    Usage,
)

__all__ = [
    "Answer",
    "Caller",
    "Delta",
    "Done",
    "Message",
    "Model",
    "ModelEvent",
    "Request",
    "Retracted",
    "Spoke",
    "ToolCall",
    "ToolSpec",
    "Usage",
]
