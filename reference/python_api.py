"""The Python API: a heading for each public name, which mkdocstrings fills."""

from __future__ import annotations

import rolecall

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
