"""The verbs of `rolecall dead`, `rolecall key` and `rolecall models` with their options."""

from __future__ import annotations

from typing import Annotated

import typer

from rolecall.cli.options import App, Json, open_console, run_verb

dead = typer.Typer(help="Work with dead letters.", no_args_is_help=True, rich_markup_mode=None)
key = typer.Typer(help="Manage API keys of the HTTP server.", no_args_is_help=True, rich_markup_mode=None)
models = typer.Typer(help="List, fetch and control models.", no_args_is_help=True, rich_markup_mode=None)
LetterId = Annotated[str, typer.Argument(metavar="ID", help="as `rolecall dead list` shows it")]
LetterIds = Annotated[list[str] | None, typer.Argument(metavar="ID", help="as `rolecall dead list` shows them")]
Everything = Annotated[bool, typer.Option("--all", help="all dead letters")]
ModelName = Annotated[str, typer.Argument(metavar="NAME", help="local model, such as smollm2")]


@dead.command("list")
def dead_list(app_dir: App = None, as_json: Json = False) -> None:
    """List dead letters."""
    from rolecall.cli import dead as verb

    run_verb(verb.list_letters(app_dir, open_console(), as_json=as_json))


@dead.command("show")
def dead_show(letter_id: LetterId, app_dir: App = None, as_json: Json = False) -> None:
    """Show one dead letter."""
    from rolecall.cli import dead as verb

    run_verb(verb.show_letter(app_dir, letter_id, open_console(), as_json=as_json))


@dead.command("replay")
def dead_replay(ids: LetterIds = None, everything: Everything = False, app_dir: App = None) -> None:
    """Replay dead letters and remove them.

    An envelope becomes the newest turn of its conversation, a delivery is delivered again, an update cannot be
    replayed.
    """
    from rolecall.cli import dead as verb

    run_verb(verb.replay_letters(app_dir, ids or (), everything, open_console()))


@dead.command("drop")
def dead_drop(ids: LetterIds = None, everything: Everything = False, app_dir: App = None) -> None:
    """Delete dead letters."""
    from rolecall.cli import dead as verb

    run_verb(verb.drop_letters(app_dir, ids or (), everything, open_console()))


@key.command("new")
def key_new(
    name: Annotated[str, typer.Argument(metavar="NAME", help="the owner's name")],
    admin: Annotated[bool, typer.Option("--admin", help="create an operator key")] = False,
    app_dir: App = None,
) -> None:
    """Create an API key and print it once."""
    from rolecall.cli import http as verb

    run_verb(verb.new_key(app_dir, name, open_console(), admin=admin))


@key.command("list")
def key_list(app_dir: App = None, as_json: Json = False) -> None:
    """List the API keys."""
    from rolecall.cli import http as verb

    run_verb(verb.list_keys(app_dir, open_console(), as_json=as_json))


@key.command("revoke")
def key_revoke(
    key_id: Annotated[str, typer.Argument(metavar="ID", help="as `rolecall key list` shows it")],
    app_dir: App = None,
) -> None:
    """Revoke an API key."""
    from rolecall.cli import http as verb

    run_verb(verb.revoke_key(app_dir, key_id, open_console()))


@key.command("reset")
def key_reset(app_dir: App = None) -> None:
    """Revoke all keys; localhost needs none then."""
    from rolecall.cli import http as verb

    run_verb(verb.reset_keys(app_dir, open_console()))


@models.command("list")
def models_list(
    provider: Annotated[str, typer.Argument(metavar="PROVIDER", help="only its models, such as openai")] = "",
    app_dir: App = None,
) -> None:
    """List the models of configured providers."""
    from rolecall.cli import models as verb

    run_verb(verb.list_models(app_dir, provider, open_console(), open_console(stderr=True)))


@models.command("pull")
def models_pull(
    name: Annotated[str, typer.Argument(metavar="NAME", help="local model, or 'better'")] = "better",
    app_dir: App = None,
) -> None:
    """Download a local model.

    An interrupted download continues where it stopped.
    """
    from rolecall.cli import models as verb

    run_verb(verb.pull(app_dir, name, open_console()))


@models.command("ps")
def models_ps(app_dir: App = None, as_json: Json = False) -> None:
    """Show model servers, slots, calls and memory."""
    from rolecall.cli import models as verb

    run_verb(verb.show(app_dir, open_console(), as_json=as_json))


@models.command("load")
def models_load(name: ModelName, app_dir: App = None) -> None:
    """Load a local model and keep it loaded."""
    from rolecall.cli import models as verb

    run_verb(verb.load(app_dir, name, open_console()))


@models.command("unload")
def models_unload(
    name: ModelName,
    app_dir: App = None,
    force: Annotated[bool, typer.Option("--force", help="even while it is answering")] = False,
) -> None:
    """Unload a local model.

    The next question loads it again.
    """
    from rolecall.cli import models as verb

    run_verb(verb.unload(app_dir, name, open_console(), force=force))


@models.command("clean")
def models_clean(app_dir: App = None) -> None:
    """End orphaned model server processes."""
    from rolecall.cli import models as verb

    run_verb(verb.clean(app_dir, open_console()))
