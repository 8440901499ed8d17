"""Language models behind one streaming protocol."""

from rolecall.models.model import Answer, Delta, Done, Message, Model, ModelEvent, Request, Spoke, Usage

__all__ = ["Answer", "Delta", "Done", "Message", "Model", "ModelEvent", "Request", "Spoke", "Usage"]
