"""The events of a turn and the words of a transcript. The names come from the code, what they mean stands here."""

from __future__ import annotations

from typing import get_args

from reference.markdown import code, sentence, table
from rolecall.bus.events import FINAL, Event, Kind
from rolecall.transcripts.words import WORDS

EVENTS = {
    "accepted": "the message is a turn; `place` counts those before it",
    "queued": "the turn waits: for those before it, or with `payload` for a model (`kind`, `wait` in seconds)",
    "started": "an instance began; deltas before it are void",
    "asked": "the handler asked the user something; `text` is the question, and the turn waits without an instance",
    "answered": "the question of `asked` is closed",
    "delta": "a piece of the answer, at `position` characters",
    "final": "the answer",
    "error": "the turn was given up; `text` is what the user reads",
    "cancelled": "the turn was cancelled",
    "notice": "something the user did not ask for; belongs to no turn",
    "cleared": "the conversation was cleared: its turns up to the number in `text`",
}
RECORDS = {
    "RECEIVED": "a front end accepted the message",
    "STARTED": "an instance began",
    "TAKEN_OVER": "an instance took the envelope over from one that died",
    "RESUMED": "what the handler waited for is there, and an instance goes on",
    "SENT": "the envelope went to the next role",
    "PROCESSING_COMPLETE": "the answer, its model, tokens and time",
    "RETRY": "the attempt failed and is repeated",
    "DEFERRED": "the turn sleeps, for a time or for a model",
    "SUSPENDED": "the handler waits for a call, an answer or a time, without an instance",
    "FENCED": "a result came too late: another instance has the envelope",
    "CANCELLED": "the turn was cancelled",
    "ERROR": "the attempt failed for good",
    "DEAD_LETTER": "the envelope became a dead letter",
    "STEP": "a step of the handler was recorded or replayed",
    "ASKED": "the handler asked the user something",
    "ANSWERED": "the user answered what the handler asked",
    "DELIVERED": "the front end showed the answer",
    "NOTE": "what an agent wrote with `ctx.log`, and other remarks",
}
HEAD = """\
# Events and transcripts

Generated from the code.

## Events of a turn

`Assistant.stream` and `Assistant.follow` yield them; [over HTTP](../http.md#stream-it) they are server-sent events.
"""


def page() -> str:
    """The page."""
    kinds = [(code(kind), "yes" if kind in FINAL else "", EVENTS.get(kind, "")) for kind in get_args(Kind)]
    fields = ", ".join(f"`{name}`" for name in Event.__dataclass_fields__)
    words = [(code(name), word.state, RECORDS.get(name, "")) for name, word in WORDS.items()]
    return "\n".join([
        HEAD, *table(("event", "last", "what happened"), kinds),
        f"Fields: {fields}.", "", sentence(Event.__doc__ or ""), "",
        "## Words of a transcript", "",
        "The closed list of words in the fourth column of a [transcript](../usage.md#read-the-transcripts). The state"
        " is that of the turn afterwards.",
        *table(("word", "state", "what happened"), words),
    ]).rstrip() + "\n"  # fmt: skip
