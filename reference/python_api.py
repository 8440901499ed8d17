"""The Python API: a heading for each public name, which mkdocstrings fills."""

from __future__ import annotations

import inspect
import pkgutil
import re
from collections.abc import Iterator

import rolecall
from reference.markdown import sentence

HEAD = """\
# Python API

Generated from the code. What `rolecall` exports is stable: it changes with a deprecation of at least twelve months.
[The Python API](../library.md) shows how it is used.
"""
MORE = (
    ("A running assistant", "`rolecall.connect()` and `rolecall.run()` yield it.", ("rolecall.client.Assistant",
     "rolecall.client.Reply", "rolecall.client.TurnRef", "rolecall.bus.events.Event")),
    ("Testing", "`pip install 'rolecall[testing]'`.", ("rolecall.testing.run_turn", "rolecall.testing.FakeModel",
     "rolecall.testing.Turn", "rolecall.testing.tool_call")),
    ("Errors", "All are below `RolecallError`.", ("rolecall.errors.Refused", "rolecall.errors.TurnFailed",
     "rolecall.errors.NothingRunning", "rolecall.errors.ServerUnavailable", "rolecall.errors.ToolError")),
    ("Models", "What a provider implements.", ("rolecall.models.Model", "rolecall.models.Request",
     "rolecall.models.Delta", "rolecall.models.Usage", "rolecall.models.Done")),
)  # fmt: skip
"""Names that are reached through the others."""


def page() -> str:
    """The page."""
    lines = [HEAD, "## rolecall", ""]
    for name in sorted(rolecall.__all__):
        lines += [f"::: rolecall.{name}", ""]
    for title, text, names in MORE:
        lines += [f"## {title}", "", text, "", *(f"::: {name}\n" for name in names)]
    return "\n".join(lines).rstrip() + "\n"


def written_out(markdown: str) -> str:
    """``markdown`` with each ``::: name`` replaced by the signature and the docstrings of ``name``."""
    return re.sub(r"^::: (\S+)$", lambda found: "\n".join(_described(found[1])), markdown, flags=re.M)


def _described(name: str) -> Iterator[str]:
    found = pkgutil.resolve_name(name)
    yield f"### {name}\n\n{inspect.getdoc(found) or ''}\n"
    if not inspect.isclass(found):
        yield f"    {name.rpartition('.')[2]}{inspect.signature(found)}\n"
        return
    for field, kind in inspect.get_annotations(found).items():
        if not field.startswith("_"):
            yield f"- `{field}: {kind}`"
    for member, value in list(vars(found).items()):
        value = getattr(value, "__func__", value)
        if not member.startswith("_") and (inspect.isfunction(value) or isinstance(value, property)):
            shown = "" if isinstance(value, property) else inspect.signature(value)
            yield f"- `{member}{shown}`: {sentence(inspect.getdoc(value) or '')}"
