"""Every verb with its options. What a verb does is in the file of its name."""

from __future__ import annotations

import re
from collections.abc import Coroutine
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

if TYPE_CHECKING:
    from rich.console import Console


app = typer.Typer(
    help="Rolecall: a message bus for multi-agent assistants, and an assistant on it.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
    rich_markup_mode=None,
)
dead = typer.Typer(help="Work with dead letters.", no_args_is_help=True, rich_markup_mode=None)
key = typer.Typer(help="Manage API keys of the HTTP server.", no_args_is_help=True, rich_markup_mode=None)
App = Annotated[
    Path | None, typer.Option("--app", metavar="DIR", help="application directory (default: ROLECALL_APP or .)")
]
Json = Annotated[bool, typer.Option("--json", help="print JSON, one object a line")]
LetterId = Annotated[str, typer.Argument(metavar="ID", help="as `rolecall dead list` shows it")]
LetterIds = Annotated[list[str] | None, typer.Argument(metavar="ID", help="as `rolecall dead list` shows them")]
Everything = Annotated[bool, typer.Option("--all", help="all dead letters")]
models = typer.Typer(help="List, fetch and control models.", no_args_is_help=True, rich_markup_mode=None)
ModelName = Annotated[str, typer.Argument(metavar="NAME", help="local model, such as smollm2")]


app.add_typer(dead, name="dead")
app.add_typer(key, name="key")
app.add_typer(models, name="models")


@app.command()
def up(
    app_dir: App = None,
    chat: Annotated[bool, typer.Option("--chat/--no-chat", help="offer the chat prompt in a terminal")] = True,
    dev: Annotated[bool, typer.Option("--dev", help="reload the agents when their files change")] = False,
    foreground: Annotated[bool, typer.Option("--foreground", hidden=True)] = False,
) -> None:
    """Run everything in one process.

    That is the server, the agents, the scribe, HTTP, Telegram if it is set up, and a chat prompt in a terminal.
    """
    from rolecall.cli import run

    _run(run.up(app_dir, chat=chat, dev=dev), foreground=foreground)


@app.command()
def worker(
    app_dir: App = None,
    role: Annotated[list[str] | None, typer.Option("--role", metavar="ROLE", help="only this role; may repeat")] = None,
    dev: Annotated[bool, typer.Option("--dev", help="reload the agents when their files change")] = False,
) -> None:
    """Run only agents, here or on another host."""
    from rolecall.cli import run

    _run(run.worker(app_dir, roles=role or None, dev=dev))


@app.command()
def telegram(
    app_dir: App = None,
    idle: Annotated[bool, typer.Option("--idle", help="without a token, wait instead of failing")] = False,
    name: Annotated[str, typer.Option("--name", metavar="NAME", help="front end name, one per bot")] = "telegram",
) -> None:
    """Run only the Telegram bot.

    Its token is TELEGRAM_BOT_TOKEN. Several processes share the chats. Agents run in `up` or `worker`.
    """
    from rolecall.cli import telegram as verb

    _run(verb.telegram(app_dir, _console(), idle=idle, name=_front_name(name)))


@app.command()
def invite(
    app_dir: App = None,
    admin: Annotated[bool, typer.Option("--admin", help="invite an admin")] = False,
    days: Annotated[float, typer.Option("--days", min=0.01, max=365, help="days the link is valid")] = 7,
    name: Annotated[str, typer.Option("--name", metavar="NAME", help="front end name, one per bot")] = "telegram",
) -> None:
    """Print a Telegram invitation link."""
    from rolecall.cli import telegram as verb

    _run(verb.invite(app_dir, _console(), admin=admin, days=days, name=_front_name(name)))


@app.command()
def http(
    app_dir: App = None,
    host: Annotated[
        str | None, typer.Option("--host", metavar="HOST", help="address to listen on (default: HTTP_HOST)")
    ] = None,
    port: Annotated[
        int | None, typer.Option("--port", min=0, max=65_535, help="port (default: HTTP_PORT or the next free one)")
    ] = None,
    workers: Annotated[
        int | None, typer.Option("--workers", min=1, max=256, help="processes (default: SERVER_WORKERS)")
    ] = None,
    dev: Annotated[bool, typer.Option("--dev", help="run one process")] = False,
    fd: Annotated[int | None, typer.Option("--fd", hidden=True)] = None,
) -> None:
    """Run only the HTTP API and the web page.

    Agents run in `up` or `worker`.
    """
    from rolecall.cli import http as verb

    _run(verb.http(app_dir, _console(), host=host, port=port, workers=1 if dev else workers, fd=fd))


@app.command()
def health(
    kind: Annotated[
        Literal["http", "worker", "telegram"],
        typer.Argument(metavar="KIND", help="kind of process: http, worker or telegram"),
    ],
    app_dir: App = None,
) -> None:
    """Check that a process is alive.

    Exit status 0 if a process of this kind on this host sent a heartbeat recently, else 1.
    """
    from rolecall.cli import check as verb

    _run(verb.health(app_dir, kind, _console()))


@app.command()
def chat(
    app_dir: App = None,
    conversation: Annotated[str, typer.Option("--conversation", metavar="ID", help="continue this conversation")] = "",
    name: Annotated[
        str, typer.Option("--name", metavar="NAME", help="your name in the conversation ID (default: login)")
    ] = "",
) -> None:
    """Chat at a prompt.

    Without a terminal, answer each line of stdin.
    """
    from rolecall.cli import talk

    _run(talk.chat(app_dir, conversation=conversation, name=name))


@app.command()
def ask(
    text: Annotated[str, typer.Argument(metavar="TEXT", help="the question, or - to read stdin")],
    app_dir: App = None,
    conversation: Annotated[str, typer.Option("--conversation", metavar="ID", help="continue this conversation")] = "",
    as_json: Annotated[bool, typer.Option("--json", help="print one JSON object")] = False,
    role: Annotated[str, typer.Option("--role", metavar="ROLE", help="role that answers")] = "",
    model: Annotated[str, typer.Option("--model", metavar="MODEL", help="model that answers, as name@provider")] = "",
    priority: Annotated[
        int | None, typer.Option("--priority", min=0, max=100, help="high first (default: DEFAULT_PRIORITY)")
    ] = None,
    timeout: Annotated[
        float | None,
        typer.Option("--timeout", min=0.1, metavar="SECONDS", help="seconds to wait; then cancel the turn"),
    ] = None,
) -> None:
    """Ask one question and print the answer.

    Exit status 0 with the answer on stdout, or 1 with the reason on stderr.
    """
    from rolecall.cli import talk

    question = talk.Question(talk.text_of(text), conversation, role, model, priority, timeout)
    _run(talk.ask(app_dir, question, as_json=as_json))


@app.command()
def check(app_dir: App = None) -> None:
    """Test the configuration and the deployment.

    Shows each setting in force and where it comes from, and what to do about each problem.
    """
    from rolecall.cli import check as verb

    _run(verb.check(app_dir, _console()))


@app.command()
def top(app_dir: App = None) -> None:
    """Show live instances, queues and turns.

    q or Ctrl-C quits.
    """
    from rolecall.cli import top as verb

    _run(verb.top(app_dir, _console()))


@app.command()
def stats(app_dir: App = None, as_json: Json = False) -> None:
    """Show today's turns, users, queues and tokens."""
    from rolecall.cli import top as verb

    _run(verb.show_stats(app_dir, _console(), as_json=as_json))


@app.command()
def scale(
    orders: Annotated[list[str] | None, typer.Argument(metavar="ROLE=COUNT", help="such as dice=5")] = None,
    app_dir: App = None,
) -> None:
    """Set or list instance counts.

    A count applies to every process at once and until the configuration changes.
    """
    from rolecall.cli import scale as verb

    _run(verb.scale(app_dir, orders or (), _console()))


@app.command()
def notify(
    conversation: Annotated[str, typer.Argument(metavar="CONVERSATION", help="its ID, such as telegram:42")],
    text: Annotated[str, typer.Argument(metavar="TEXT", help="what to say, or - to read stdin")],
    app_dir: App = None,
    key: Annotated[str, typer.Option("--key", metavar="KEY", help="send the notice with this key only once")] = "",
    forget: Annotated[bool, typer.Option("--forget", help="keep it out of the model's history")] = False,
) -> None:
    """Send a notice to a conversation.

    Its front end delivers it, with a notification; no turn waits for it.
    """
    from rolecall.cli import talk

    _run(talk.notify(app_dir, conversation, text, _console(), key=key, remember=not forget))


@app.command()
def logs(
    which: Annotated[str, typer.Argument(metavar="ID", help="a conversation, or one turn such as 3fa91c-17")] = "",
    app_dir: App = None,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="keep printing new records, until Ctrl-C")] = False,
    timeline: Annotated[bool, typer.Option("--timeline", help="draw each turn as a bar chart")] = False,
    user: Annotated[str, typer.Option(metavar="TEXT", help="part of the conversation ID or title")] = "",
    since: Annotated[str, typer.Option(metavar="TIME", help="90s, 30m, 2h, 7d or a date such as 2026-11-21")] = "",
    errors: Annotated[bool, typer.Option("--errors", help="only failures")] = False,
    grep: Annotated[str, typer.Option(metavar="REGEX", help="only records that match")] = "",
    as_json: Json = False,
) -> None:
    """Show conversations, transcripts and turns.

    Without an argument, lists the conversations.
    """
    from rolecall.cli import logs as transcripts

    asked = transcripts.Asked(which, user, since, errors, grep, follow=follow, timeline=timeline, as_json=as_json)
    _run(transcripts.show(app_dir, asked, _console()))


@app.command()
def new(
    directory: Annotated[Path, typer.Argument(metavar="DIR", help="a new or empty directory")],
) -> None:
    """Create an application directory."""
    from rolecall.cli import new as verb

    raise typer.Exit(verb.new(directory, _console()))


@app.command()
def setup(app_dir: App = None) -> None:
    """Ask four questions and write .env.

    The model and its key, the Telegram bot, who may use it, and where it runs. Each answer is tested.
    """
    from rolecall.cli import setup as verb

    raise typer.Exit(verb.setup(app_dir, _console()))


@app.command()
def tools(
    app_dir: App = None,
    host: Annotated[str, typer.Option("--host", metavar="HOST", help="address to listen on")] = "127.0.0.1",
    port: Annotated[int | None, typer.Option("--port", min=1, max=65_535, help="port (default: TOOLS_PORT)")] = None,
    stdio: Annotated[bool, typer.Option("--stdio", help="serve the program that starts this, no port")] = False,
    roles: Annotated[bool, typer.Option("--roles/--no-roles", help="serve the roles too")] = True,
) -> None:
    """Serve tools and roles over MCP.

    The Model Context Protocol, by streamable HTTP or on standard input and output. A role answers while
    `rolecall up` runs.
    """
    from rolecall.cli import tool_server as verb

    raise typer.Exit(verb.serve(app_dir, _console(), host=host, port=port, stdio=stdio, roles=roles))


@app.command()
def demo(
    users: Annotated[int, typer.Option(min=1, max=500, help="number of concurrent users")] = 6,
    delay: Annotated[float, typer.Option(min=0.01, max=60, help="seconds per answer")] = 3,
    instances: Annotated[int, typer.Option(min=1, max=256, help="instances of the answering role")] = 6,
    messages: Annotated[int, typer.Option(min=1, max=100, help="messages per user")] = 1,
    http: Annotated[str, typer.Option(metavar="URL", help="use a running server instead, without --delay")] = "",
    key: Annotated[str, typer.Option(metavar="KEY", envvar="ROLECALL_KEY", help="API key for --http")] = "",
    role: Annotated[str, typer.Option(metavar="ROLE", help="role that answers, with --http")] = "",
) -> None:
    """Simulate users and draw who waited for whom.

    Uses a temporary server; your data is not touched.
    """
    from rolecall.cli import demo as verb

    if http:
        return _run(verb.demo_http(verb.Target(http, key, role), users, messages, _console()))
    _run(verb.demo(verb.Load(users, messages, instances, delay), _console()))


@dead.command("list")
def dead_list(app_dir: App = None, as_json: Json = False) -> None:
    """List dead letters."""
    from rolecall.cli import dead as verb

    _run(verb.list_letters(app_dir, _console(), as_json=as_json))


@dead.command("show")
def dead_show(letter_id: LetterId, app_dir: App = None, as_json: Json = False) -> None:
    """Show one dead letter."""
    from rolecall.cli import dead as verb

    _run(verb.show_letter(app_dir, letter_id, _console(), as_json=as_json))


@dead.command("replay")
def dead_replay(ids: LetterIds = None, everything: Everything = False, app_dir: App = None) -> None:
    """Replay dead letters and remove them.

    An envelope becomes the newest turn of its conversation, a delivery is delivered again, an update cannot be
    replayed.
    """
    from rolecall.cli import dead as verb

    _run(verb.replay_letters(app_dir, ids or (), everything, _console()))


@dead.command("drop")
def dead_drop(ids: LetterIds = None, everything: Everything = False, app_dir: App = None) -> None:
    """Delete dead letters."""
    from rolecall.cli import dead as verb

    _run(verb.drop_letters(app_dir, ids or (), everything, _console()))


@key.command("new")
def key_new(
    name: Annotated[str, typer.Argument(metavar="NAME", help="the owner's name")],
    admin: Annotated[bool, typer.Option("--admin", help="create an operator key")] = False,
    app_dir: App = None,
) -> None:
    """Create an API key and print it once."""
    from rolecall.cli import http as verb

    _run(verb.new_key(app_dir, name, _console(), admin=admin))


@key.command("list")
def key_list(app_dir: App = None, as_json: Json = False) -> None:
    """List the API keys."""
    from rolecall.cli import http as verb

    _run(verb.list_keys(app_dir, _console(), as_json=as_json))


@key.command("revoke")
def key_revoke(
    key_id: Annotated[str, typer.Argument(metavar="ID", help="as `rolecall key list` shows it")],
    app_dir: App = None,
) -> None:
    """Revoke an API key."""
    from rolecall.cli import http as verb

    _run(verb.revoke_key(app_dir, key_id, _console()))


@key.command("reset")
def key_reset(app_dir: App = None) -> None:
    """Revoke all keys; localhost needs none then."""
    from rolecall.cli import http as verb

    _run(verb.reset_keys(app_dir, _console()))


def _run(work: Coroutine[Any, Any, int | None], foreground: bool = False) -> None:
    """Run a verb and exit with its status."""
    from rolecall.cli.runner import run_loop

    try:
        status = run_loop(work, foreground=foreground)
    except BrokenPipeError:
        raise BrokenPipeError from None  # without its number, by which Click would end with status 1
    raise typer.Exit(status or 0)


def _front_name(name: str) -> str:
    if not re.fullmatch(r"telegram[a-z0-9_-]{0,20}", name, re.ASCII):
        raise typer.BadParameter("expected telegram, or a name such as telegram2 for a second bot")
    return name


def _console(stderr: bool = False) -> Console:
    from rolecall.cli.output import PipedConsole

    return PipedConsole(stderr=stderr)


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


@models.command("list")
def models_list(
    provider: Annotated[str, typer.Argument(metavar="PROVIDER", help="only its models, such as openai")] = "",
    app_dir: App = None,
) -> None:
    """List the models of configured providers."""
    from rolecall.cli import models as verb

    _run(verb.list_models(app_dir, provider, _console(), _console(stderr=True)))


@models.command("pull")
def models_pull(
    name: Annotated[str, typer.Argument(metavar="NAME", help="local model, or 'better'")] = "better",
    app_dir: App = None,
) -> None:
    """Download a local model.

    An interrupted download continues where it stopped.
    """
    from rolecall.cli import models as verb

    _run(verb.pull(app_dir, name, _console()))


@models.command("ps")
def models_ps(app_dir: App = None, as_json: Json = False) -> None:
    """Show model servers, slots, calls and memory."""
    from rolecall.cli import models as verb

    _run(verb.show(app_dir, _console(), as_json=as_json))


@models.command("load")
def models_load(name: ModelName, app_dir: App = None) -> None:
    """Load a local model and keep it loaded."""
    from rolecall.cli import models as verb

    _run(verb.load(app_dir, name, _console()))


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

    _run(verb.unload(app_dir, name, _console(), force=force))


@models.command("clean")
def models_clean(app_dir: App = None) -> None:
    """End orphaned model server processes."""
    from rolecall.cli import models as verb

    _run(verb.clean(app_dir, _console()))
