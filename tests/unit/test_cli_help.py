"""The command line explains itself: every summary is whole at 80 columns."""

from __future__ import annotations

import pytest
from typer.main import get_command
from typer.testing import CliRunner

from rolecall.cli.main import app

GROUPS = ((), ("dead",), ("key",), ("models",))


@pytest.mark.parametrize("group", GROUPS, ids=lambda group: " ".join(group) or "rolecall")
def test_every_summary_is_whole_at_eighty_columns(group: tuple[str, ...]) -> None:
    shown = CliRunner().invoke(app, [*group, "--help"], terminal_width=80)
    assert shown.exit_code == 0
    assert "…" not in shown.output
    assert "..." not in shown.output.partition("Commands:")[2]


@pytest.mark.parametrize("group", GROUPS, ids=lambda group: " ".join(group) or "rolecall")
def test_every_argument_and_option_is_explained(group: tuple[str, ...]) -> None:
    commands = get_command(app)
    for name in group:
        commands = commands.commands[name]  # type: ignore[attr-defined]
    for name, verb in commands.commands.items():  # type: ignore[attr-defined]
        unexplained = [param.name for param in verb.params if not (param.hidden or param.help)]
        assert not unexplained, name
        usage = CliRunner().invoke(app, [*group, name, "--help"], terminal_width=80).output.partition("\n")[0]
        assert "[[" not in usage
        assert "..]..." not in usage


def test_a_health_check_of_an_unknown_kind_is_a_wrong_call() -> None:
    done = CliRunner().invoke(app, ["health", "wroker"])
    assert done.exit_code == 2
    assert "'http', 'worker', 'telegram'" in done.output


def test_every_verb_has_a_summary_of_under_forty_five_characters() -> None:
    command = get_command(app)
    summaries = {name: (verb.help or "").partition("\n")[0] for name, verb in command.commands.items()}  # type: ignore[attr-defined]
    assert not {name: text for name, text in summaries.items() if not 0 < len(text) <= 45}
