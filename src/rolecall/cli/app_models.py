"""`rolecall models …`: its verbs with their options."""

from __future__ import annotations

from typing import Annotated

import typer

from rolecall.cli.app import App, Json, app, new_console, run_verb

models = typer.Typer(help="Language models.", no_args_is_help=True, rich_markup_mode=None)
app.add_typer(models, name="models")

ModelName = Annotated[str, typer.Argument(metavar="NAME", show_default=False)]


@models.command("list")
def models_list(
    provider: Annotated[str, typer.Argument(metavar="[PROVIDER]", show_default=False)] = "", app_dir: App = None
) -> None:
    """List the models there are to name in config: of each provider that is set up, or of one."""
    from rolecall.cli import models as verb

    run_verb(verb.list_models(app_dir, provider, new_console(), new_console(stderr=True)))


@models.command("pull")
def models_pull(
    name: Annotated[str, typer.Argument(metavar="NAME", help="of a model of this machine, or better")] = "better",
    app_dir: App = None,
) -> None:
    """Fetch the weights of a model of this machine; what broke off goes on where it was."""
    from rolecall.cli import models as verb

    run_verb(verb.pull(app_dir, name, new_console()))


@models.command("ps")
def models_ps(app_dir: App = None, as_json: Json = False) -> None:
    """Show the model servers: slots, calls in flight, memory, and since when."""
    from rolecall.cli import model_servers as verb

    run_verb(verb.show(app_dir, new_console(), as_json=as_json))


@models.command("load")
def models_load(name: ModelName, app_dir: App = None) -> None:
    """Load a model of this machine and keep it until `unload`."""
    from rolecall.cli import model_servers as verb

    run_verb(verb.load(app_dir, name, new_console()))


@models.command("unload")
def models_unload(
    name: ModelName,
    app_dir: App = None,
    force: Annotated[bool, typer.Option("--force", help="though it is answering")] = False,
) -> None:
    """Have a model leave memory. A question to it loads it again."""
    from rolecall.cli import model_servers as verb

    run_verb(verb.unload(app_dir, name, new_console(), force=force))


@models.command("clean")
def models_clean(app_dir: App = None) -> None:
    """Show and end processes of model servers that were left behind."""
    from rolecall.cli import model_servers as verb

    run_verb(verb.clean(app_dir, new_console()))
