"""The settings: every environment variable with its default and what is allowed, from the settings' classes."""

from __future__ import annotations

from typing import get_args

from pydantic.fields import FieldInfo

from reference.markdown import code, table
from rolecall.settings import BusSettings, FrontendSettings, ModelSettings, ServerSettings

SECTIONS = (
    ("The server", ServerSettings),
    ("Models", ModelSettings),
    ("Front ends", FrontendSettings),
    ("Timeouts and limits of the bus", BusSettings),
)
HEAD = """\
# Settings

Generated from the code. Set them in the environment or in `.env`; the environment takes precedence over `.env`, both
over `config.py`, and `rolecall scale` over all. For a secret `NAME` you can set `NAME_FILE` to the path of a file that
contains it. `rolecall check` shows each value in force and where it comes from.

`<ROLE>_INSTANCES` sets the instances of a role in each worker process: 0 to 1024, or `auto` to follow its servers.
"""


def page() -> str:
    """The page."""
    lines = [HEAD]
    for title, section in SECTIONS:
        fields = section.model_fields.items()
        lines += [f"## {title}"]
        lines += table(
            ("variable", "default", "meaning"),
            [(code(name.upper()), code(shown(field.default)), described(field)) for name, field in fields],
        )
    return "\n".join(lines).rstrip() + "\n"


def described(field: FieldInfo) -> str:
    """What a setting means and which values it may have."""
    limits = {
        name: getattr(item, name) for item in field.metadata for name in ("gt", "ge", "le") if hasattr(item, name)
    }
    words = [str(choice) for choice in get_args(field.annotation) if isinstance(choice, str)]
    least = f"{limits['ge']} to" if "ge" in limits else "more than 0, up to"
    allowed = f": {least} {limits['le']}" if "le" in limits else f": {' or '.join(words)}" if words else ""
    return f"{field.description}{allowed}"


def shown(default: object) -> str:
    """A default as it is written in `.env`."""
    return "" if default is None else f"{default:g}" if isinstance(default, float) else str(default)
