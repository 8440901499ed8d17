"""Every verb with its options; the verbs of groups are in groups.py. What a verb does is in the file of its name."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from rolecall.cli.groups import dead, key, models
from rolecall.cli.options import App, Conversation, Dev, FrontName, Json, open_console, run_verb

app = typer.Typer(
    help="Rolecall: a message bus for multi-agent assistants, and an assistant on it.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
    rich_markup_mode=None,
)
app.add_typer(dead, name="dead")
app.add_typer(key, name="key")
app.add_typer(models, name="models")


@app.command()
def up(
    app_dir: App = None,
    chat: Annotated[bool, typer.Option("--chat/--no-chat", help="offer the chat prompt in a terminal")] = True,
    dev: Dev = False,
    foreground: Annotated[bool, typer.Option("--foreground", hidden=True)] = False,
) -> None:
    """Run everything in one process.

    That is the server, the agents, the scribe, HTTP, Telegram if it is set up, and a chat prompt in a terminal.
    """
    from rolecall.cli import run

    run_verb(run.up(app_dir, chat=chat, dev=dev), foreground=foreground)


@app.command()
def worker(
    app_dir: App = None,
    role: Annotated[list[str] | None, typer.Option("--role", metavar="ROLE", help="only this role; may repeat")] = None,
    dev: Dev = False,
) -> None:
    """Run only agents, here or on another host."""
    from rolecall.cli import run

    run_verb(run.worker(app_dir, roles=role or None, dev=dev))


@app.command()
def telegram(
    app_dir: App = None,
    idle: Annotated[bool, typer.Option("--idle", help="without a token, wait instead of failing")] = False,
    name: FrontName = "telegram",
) -> None:
    """Run only the Telegram bot.

    Its token is TELEGRAM_BOT_TOKEN. Several processes share the chats. Agents run in `up` or `worker`.
    """
    from rolecall.cli import telegram as verb

    run_verb(verb.telegram(app_dir, open_console(), idle=idle, name=name))


@app.command()
def invite(
    app_dir: App = None,
    admin: Annotated[bool, typer.Option("--admin", help="invite an admin")] = False,
    days: Annotated[float, typer.Option("--days", min=0.01, max=365, help="days the link is valid")] = 7,
    name: FrontName = "telegram",
) -> None:
    """Print a Telegram invitation link."""
    from rolecall.cli import telegram as verb

    run_verb(verb.invite(app_dir, open_console(), admin=admin, days=days, name=name))


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

    run_verb(verb.http(app_dir, open_console(), host=host, port=port, workers=1 if dev else workers, fd=fd))


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

    run_verb(verb.health(app_dir, kind, open_console()))


@app.command()
def chat(
    app_dir: App = None,
    conversation: Conversation = "",
    name: Annotated[
        str, typer.Option("--name", metavar="NAME", help="your name in the conversation ID (default: login)")
    ] = "",
) -> None:
    """Chat at a prompt.

    Without a terminal, answer each line of stdin.
    """
    from rolecall.cli import talk

    run_verb(talk.chat(app_dir, conversation=conversation, name=name))


@app.command()
def ask(
    text: Annotated[str, typer.Argument(metavar="TEXT", help="the question, or - to read stdin")],
    app_dir: App = None,
    conversation: Conversation = "",
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
    run_verb(talk.ask(app_dir, question, as_json=as_json))


@app.command()
def check(app_dir: App = None) -> None:
    """Test the configuration and the deployment.

    Shows each setting in force and where it comes from, and what to do about each problem.
    """
    from rolecall.cli import check as verb

    run_verb(verb.check(app_dir, open_console()))


@app.command()
def top(app_dir: App = None) -> None:
    """Show live instances, queues and turns.

    q or Ctrl-C quits.
    """
    from rolecall.cli import top as verb

    run_verb(verb.top(app_dir, open_console()))


@app.command()
def stats(app_dir: App = None, as_json: Json = False) -> None:
    """Show today's turns, users, queues and tokens."""
    from rolecall.cli import top as verb

    run_verb(verb.show_stats(app_dir, open_console(), as_json=as_json))


@app.command()
def scale(
    orders: Annotated[list[str] | None, typer.Argument(metavar="ROLE=COUNT", help="such as dice=5")] = None,
    app_dir: App = None,
) -> None:
    """Set or list instance counts.

    A count applies to every process at once and until the configuration changes.
    """
    from rolecall.cli import scale as verb

    run_verb(verb.scale(app_dir, orders or (), open_console()))


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

    run_verb(talk.notify(app_dir, conversation, text, open_console(), key=key, remember=not forget))


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

    asked = transcripts.LogQuery(which, user, since, errors, grep, follow=follow, timeline=timeline, as_json=as_json)
    run_verb(transcripts.show(app_dir, asked, open_console()))


@app.command()
def new(
    directory: Annotated[Path, typer.Argument(metavar="DIR", help="a new or empty directory")],
) -> None:
    """Create an application directory."""
    from rolecall.cli import new as verb

    raise typer.Exit(verb.new(directory, open_console()))


@app.command()
def setup(app_dir: App = None) -> None:
    """Ask four questions and write .env.

    The model and its key, the Telegram bot, who may use it, and where it runs. Each answer is tested.
    """
    from rolecall.cli import setup as verb

    raise typer.Exit(verb.setup(app_dir, open_console()))


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

    raise typer.Exit(verb.serve(app_dir, open_console(), host=host, port=port, stdio=stdio, roles=roles))


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
        return run_verb(verb.demo_http(verb.Target(http, key, role), users, messages, open_console()))
    run_verb(verb.demo(verb.Load(users, messages, instances, delay), open_console()))


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
