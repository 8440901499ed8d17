"""Every verb with its options; what a verb does stands in the file of its group."""

from __future__ import annotations

import re
from collections.abc import Coroutine
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from rich.console import Console


app = typer.Typer(
    help="Rolecall: a message bus for multi-agent assistants, and the assistant that runs on it.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
    rich_markup_mode=None,
)
dead = typer.Typer(help="Envelopes given up on.", no_args_is_help=True, rich_markup_mode=None)
key = typer.Typer(help="Who may use the HTTP server.", no_args_is_help=True, rich_markup_mode=None)
App = Annotated[
    Path | None, typer.Option("--app", metavar="DIR", help="application directory; else ROLECALL_APP, else here")
]
Json = Annotated[bool, typer.Option("--json", help="for machines: one JSON object a line")]
LetterId = Annotated[str, typer.Argument(metavar="ID", show_default=False)]
LetterIds = Annotated[list[str] | None, typer.Argument(metavar="ID...", show_default=False)]
Everything = Annotated[bool, typer.Option("--all", help="all there are")]
Conversation = Annotated[str, typer.Option("--conversation", metavar="ID", help="go on with this conversation")]
models = typer.Typer(help="Language models.", no_args_is_help=True, rich_markup_mode=None)
ModelName = Annotated[str, typer.Argument(metavar="NAME", show_default=False)]


app.add_typer(dead, name="dead")


app.add_typer(key, name="key")


@app.command()
def up(
    app_dir: App = None,
    chat: Annotated[bool, typer.Option("--chat/--no-chat", help="offer the chat prompt in a terminal")] = True,
    dev: Annotated[bool, typer.Option("--dev", help="reload the agents when their files change")] = False,
    foreground: Annotated[bool, typer.Option("--foreground", hidden=True)] = False,
) -> None:
    """Run everything in this process: server, agents, scribe, and in a terminal the chat prompt."""
    from rolecall.cli import run

    _run(run.up(app_dir, chat=chat, dev=dev), foreground=foreground)


@app.command()
def worker(
    app_dir: App = None,
    role: Annotated[list[str] | None, typer.Option("--role", metavar="ROLE", help="only this role; may repeat")] = None,
    dev: Annotated[bool, typer.Option("--dev", help="reload the agents when their files change")] = False,
) -> None:
    """Run agents only, here or on any host that reaches the server."""
    from rolecall.cli import run

    _run(run.worker(app_dir, roles=role or None, dev=dev))


@app.command()
def telegram(
    app_dir: App = None,
    idle: Annotated[bool, typer.Option("--idle", help="without a token wait, in place of an error")] = False,
    name: Annotated[
        str, typer.Option("--name", metavar="NAME", help="of the front end: one for each bot")
    ] = "telegram",
) -> None:
    """Serve the Telegram bot of TELEGRAM_BOT_TOKEN; a second process stands by. Agents run in `up` or `worker`."""
    from rolecall.cli import telegram as verb

    _run(verb.telegram(app_dir, _console(), idle=idle, name=_front_name(name)))


@app.command()
def invite(
    app_dir: App = None,
    admin: Annotated[bool, typer.Option("--admin", help="for one who may let others in")] = False,
    days: Annotated[float, typer.Option("--days", min=0.01, max=365, help="how long it is good")] = 7,
    name: Annotated[
        str, typer.Option("--name", metavar="NAME", help="of the front end: one for each bot")
    ] = "telegram",
) -> None:
    """Print a link that lets one person in on Telegram."""
    from rolecall.cli import telegram as verb

    _run(verb.invite(app_dir, _console(), admin=admin, days=days, name=_front_name(name)))


@app.command()
def http(
    app_dir: App = None,
    host: Annotated[str | None, typer.Option("--host", help="address to listen on; else HTTP_HOST")] = None,
    port: Annotated[
        int | None, typer.Option("--port", min=0, max=65_535, help="else HTTP_PORT or the next free")
    ] = None,
    workers: Annotated[int | None, typer.Option("--workers", min=1, max=256, help="else SERVER_WORKERS")] = None,
    dev: Annotated[bool, typer.Option("--dev", help="one process")] = False,
    fd: Annotated[int | None, typer.Option("--fd", hidden=True)] = None,
) -> None:
    """Serve the web page and the HTTP API. Agents run in `up` or `worker`."""
    from rolecall.cli import http as verb

    _run(verb.http(app_dir, _console(), host=host, port=port, workers=1 if dev else workers, fd=fd))


@app.command()
def health(
    kind: Annotated[str, typer.Argument(metavar="http|worker|telegram", show_default=False)], app_dir: App = None
) -> None:
    """Whether such a process of this host gave a sign of life lately: exit status 0, else 1."""
    from rolecall.cli import health as verb

    _run(verb.health(app_dir, kind, _console()))


@app.command()
def chat(
    app_dir: App = None,
    conversation: Annotated[
        str, typer.Option("--conversation", metavar="ID", help="go on with this conversation")
    ] = "",
    name: Annotated[str, typer.Option("--name", help="your name in the conversation's id; else your login")] = "",
) -> None:
    """Talk at a prompt; without a terminal answer each line of stdin."""
    from rolecall.cli import talk

    _run(talk.chat(app_dir, conversation=conversation, name=name))


@app.command()
def ask(
    text: Annotated[str, typer.Argument(metavar="TEXT", help="the question; - reads it from stdin")],
    app_dir: App = None,
    conversation: Annotated[
        str, typer.Option("--conversation", metavar="ID", help="go on with this conversation")
    ] = "",
    as_json: Annotated[bool, typer.Option("--json", help="print one JSON object")] = False,
    role: Annotated[str, typer.Option("--role", metavar="ROLE", help="the role that answers")] = "",
    model: Annotated[str, typer.Option("--model", metavar="MODEL", help="the model that answers: name@provider")] = "",
    priority: Annotated[int | None, typer.Option("--priority", min=0, max=100, help="0 to 100, high is early")] = None,
    timeout: Annotated[float | None, typer.Option("--timeout", min=0.1, metavar="SECONDS", help="stop it then")] = None,
) -> None:
    """Ask once: the answer on stdout and exit status 0, or what went wrong on stderr and 1."""
    from rolecall.cli import talk

    question = talk.Question(talk.text_of(text), conversation, role, model, priority, timeout)
    _run(talk.ask(app_dir, question, as_json=as_json))


@app.command()
def check(app_dir: App = None) -> None:
    """Show what is in force and from where, test all of it, and say what to do about each problem."""
    from rolecall.cli import check as verb

    _run(verb.check(app_dir, _console()))


@app.command()
def top(app_dir: App = None) -> None:
    """Show live who does what: instances, queues, turns, processes. q or Ctrl-C leaves."""
    from rolecall.cli import top as verb

    _run(verb.top(app_dir, _console()))


@app.command()
def stats(app_dir: App = None, as_json: Json = False) -> None:
    """Show the figures of today: turns, users, how busy each role was, queues, errors, tokens."""
    from rolecall.cli import top as verb

    _run(verb.show_stats(app_dir, _console(), as_json=as_json))


@app.command()
def scale(
    orders: Annotated[list[str] | None, typer.Argument(metavar="[ROLE=COUNT]...", show_default=False)] = None,
    app_dir: App = None,
) -> None:
    """Set how many instances each process runs of a role, at once and until config changes; or list the counts."""
    from rolecall.cli import scale as verb

    _run(verb.scale(app_dir, orders or (), _console()))


@app.command()
def logs(
    which: Annotated[str, typer.Argument(metavar="[CONVERSATION|TURN]", show_default=False)] = "",
    app_dir: App = None,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="go on with what is written, until Ctrl-C")] = False,
    timeline: Annotated[bool, typer.Option("--timeline", help="draw turns as bars")] = False,
    user: Annotated[str, typer.Option(help="part of a conversation's id or title")] = "",
    since: Annotated[str, typer.Option(help="90s, 30m, 2h, 7d or a day such as 2026-11-21")] = "",
    errors: Annotated[bool, typer.Option("--errors", help="only what went wrong")] = False,
    grep: Annotated[str, typer.Option(metavar="REGEX", help="only records that match")] = "",
    as_json: Json = False,
) -> None:
    """List the conversations; or show one of them, or one turn."""
    from rolecall.cli import logs as transcripts

    asked = transcripts.Asked(which, user, since, errors, grep, follow=follow, timeline=timeline, as_json=as_json)
    _run(transcripts.show(app_dir, asked, _console()))


@app.command()
def new(directory: Annotated[Path, typer.Argument(metavar="DIR", show_default=False)]) -> None:
    """Make a new application directory that runs as it is."""
    from rolecall.cli import new as verb

    raise typer.Exit(verb.new(directory, _console()))


@app.command()
def tools(
    app_dir: App = None,
    host: Annotated[str, typer.Option("--host", metavar="HOST", help="address to listen on")] = "127.0.0.1",
    port: Annotated[int | None, typer.Option("--port", min=1, max=65_535, help="else TOOLS_PORT")] = None,
) -> None:
    """Offer the application's tools to others, as a server of the Model Context Protocol (MCP) over HTTP."""
    from rolecall.cli import tool_server as verb

    raise typer.Exit(verb.serve(app_dir, _console(), host=host, port=port))


@app.command()
def demo(
    users: Annotated[int, typer.Option(min=1, max=500, help="who all send at once")] = 6,
    delay: Annotated[float, typer.Option(min=0.01, max=60, help="seconds an answer takes")] = 3,
    instances: Annotated[int, typer.Option(min=1, max=256, help="of the answering role")] = 6,
    messages: Annotated[int, typer.Option(min=1, max=100, help="of each user")] = 1,
    http: Annotated[str, typer.Option(metavar="URL", help="ask a running HTTP server instead; no --delay then")] = "",
    key: Annotated[str, typer.Option(envvar="ROLECALL_KEY", help="API key for --http")] = "",
    role: Annotated[str, typer.Option(help="who is to answer, with --http; else the manager decides")] = "",
) -> None:
    """Send simultaneous users through a bus of its own and draw who waited for whom. Touches no data of yours."""
    from rolecall.cli import demo as verb

    if http:
        return _run(verb.demo_http(verb.Target(http, key, role), users, messages, _console()))
    _run(verb.demo(verb.Load(users, messages, instances, delay), _console()))


@dead.command("list")
def dead_list(app_dir: App = None, as_json: Json = False) -> None:
    """List them."""
    from rolecall.cli import dead as verb

    _run(verb.list_letters(app_dir, _console(), as_json=as_json))


@dead.command("show")
def dead_show(letter_id: LetterId, app_dir: App = None, as_json: Json = False) -> None:
    """Show all there is about one."""
    from rolecall.cli import dead as verb

    _run(verb.show_letter(app_dir, letter_id, _console(), as_json=as_json))


@dead.command("replay")
def dead_replay(ids: LetterIds = None, everything: Everything = False, app_dir: App = None) -> None:
    """Send them again, each as the newest turn of its conversation, and remove them."""
    from rolecall.cli import dead as verb

    _run(verb.replay_letters(app_dir, ids or (), everything, _console()))


@dead.command("drop")
def dead_drop(ids: LetterIds = None, everything: Everything = False, app_dir: App = None) -> None:
    """Remove them for good."""
    from rolecall.cli import dead as verb

    _run(verb.drop_letters(app_dir, ids or (), everything, _console()))


@key.command("new")
def key_new(
    name: Annotated[str, typer.Argument(metavar="NAME", show_default=False, help="whose it is")],
    admin: Annotated[bool, typer.Option("--admin", help="an operator's key")] = False,
    app_dir: App = None,
) -> None:
    """Make an API key and print it: it is never shown again."""
    from rolecall.cli import http as verb

    _run(verb.new_key(app_dir, name, _console(), admin=admin))


@key.command("list")
def key_list(app_dir: App = None, as_json: Json = False) -> None:
    """List the API keys."""
    from rolecall.cli import http as verb

    _run(verb.list_keys(app_dir, _console(), as_json=as_json))


@key.command("revoke")
def key_revoke(key_id: Annotated[str, typer.Argument(metavar="ID", show_default=False)], app_dir: App = None) -> None:
    """Refuse an API key from now on."""
    from rolecall.cli import http as verb

    _run(verb.revoke_key(app_dir, key_id, _console()))


def _run(work: Coroutine[Any, Any, int | None], foreground: bool = False) -> None:
    """Run a verb's coroutine on the fastest loop there is; its value is the exit status."""
    from rolecall.cli.runner import run_loop

    raise typer.Exit(run_loop(work, foreground=foreground) or 0)


def run_verb(work: Coroutine[Any, Any, int | None]) -> None:
    """``_run`` for the verbs in files beside this one."""
    _run(work)


def new_console(*, stderr: bool = False) -> Console:
    """``_console`` for the verbs in files beside this one."""
    return _console(stderr)


def _front_name(name: str) -> str:
    if not re.fullmatch(r"telegram[a-z0-9_-]{0,20}", name, re.ASCII):
        raise typer.BadParameter("telegram, or telegram2 or the like for a second bot, is allowed")
    return name


def _console(stderr: bool = False) -> Console:
    from rich.console import Console

    return Console(stderr=stderr)


def _version(wanted: bool) -> None:
    if wanted:
        from rolecall.version import __version__

        typer.echo(f"rolecall {__version__}")
        raise typer.Exit()


@app.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    pass


app.add_typer(models, name="models")


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
    from rolecall.cli import models as verb

    run_verb(verb.show(app_dir, new_console(), as_json=as_json))


@models.command("load")
def models_load(name: ModelName, app_dir: App = None) -> None:
    """Load a model of this machine and keep it until `unload`."""
    from rolecall.cli import models as verb

    run_verb(verb.load(app_dir, name, new_console()))


@models.command("unload")
def models_unload(
    name: ModelName,
    app_dir: App = None,
    force: Annotated[bool, typer.Option("--force", help="though it is answering")] = False,
) -> None:
    """Have a model leave memory. A question to it loads it again."""
    from rolecall.cli import models as verb

    run_verb(verb.unload(app_dir, name, new_console(), force=force))


@models.command("clean")
def models_clean(app_dir: App = None) -> None:
    """Show and end processes of model servers that were left behind."""
    from rolecall.cli import models as verb

    run_verb(verb.clean(app_dir, new_console()))
