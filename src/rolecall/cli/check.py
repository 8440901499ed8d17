"""`rolecall check`: what is in force and from where; whether it works; what to do where it does not. `rolecall health`:
whether a process of this host is alive, for health checks of containers."""

from __future__ import annotations

import asyncio
import re
import socket
from collections.abc import Awaitable, Iterable, Mapping, Sequence
from pathlib import Path

from pydantic import SecretStr
from rich.console import Console
from rich.text import Text

from rolecall.bus.bus import short_process
from rolecall.bus.process.processes import ProcessState, live_processes
from rolecall.cli.checks.application_checks import look_at_application, look_at_telegram
from rolecall.cli.checks.deployment_checks import look_at_deployment
from rolecall.cli.checks.finding import Finding
from rolecall.cli.checks.model_checks import look_at_models
from rolecall.cli.checks.server_checks import ServerLook, look_at_server
from rolecall.cli.output import columns, print_lines, print_table, visiting
from rolecall.cli.runner import load_quietly
from rolecall.cli.scale import source_of_count
from rolecall.config import Application
from rolecall.errors import RolecallError
from rolecall.settings import HIDDEN, BusSettings, FrontendSettings, ModelSettings, ServerSettings, Settings
from rolecall.version import __version__

STYLES = {"passed": "green", "failed": "bold red", "not set up": "dim"}
GROUPS = (ServerSettings, BusSettings, ModelSettings, FrontendSettings)
HEALTH_SECONDS = 2.0
"""How long a health check waits for the server: containers give it 10 s, and a silent server takes 5 s of them."""
LOGIN = re.compile(r"(//)[^/@\s]*@")


async def check(app_dir: Path | None, console: Console) -> int:
    """Print it all; exit status 1 if something failed. Nothing that was not there stays behind: the bundled server,
    where none runs, is started for as long as this takes."""
    application = load_quietly(app_dir)
    server = ServerLook()
    await _survived("server", look_at_server(application, server), server.findings)
    print_lines(console, [f"Rolecall {__version__}, application {application.directory}"], style="bold")
    _show_settings(application, console)
    _show_roles(application, server.live, console)
    sections = (
        ("Server", server.findings),
        ("Models", await _survived("models", look_at_models(application))),
        ("Telegram", await _survived("bot", look_at_telegram(application.settings))),
        ("Application", await _survived("application", asyncio.to_thread(look_at_application, application))),
        ("Deployment checklist", await _survived("list", asyncio.to_thread(look_at_deployment, application, server))),
    )
    for title, findings in sections:
        _show_findings(title, findings, application.settings, console)
    failed = sum(finding.state == "failed" for _, findings in sections for finding in findings)
    verdict = f"{failed} of these failed; what to do stands below each" if failed else "Nothing failed."
    print_lines(console, ["", verdict], style="bold")
    return 1 if failed else 0


async def _survived(
    name: str, look: Awaitable[Iterable[Finding]], findings: list[Finding] | None = None
) -> list[Finding]:
    """``findings`` and what ``look`` finds; whatever it raises is a finding too."""
    found = [] if findings is None else findings
    try:
        found += await look
    except Exception as error:  # the boundary: a check says what it could not check, and goes on
        while isinstance(error, ExceptionGroup):
            error = error.exceptions[0]
        text = " ".join(str(error).split())
        if not isinstance(error, RolecallError):
            text = f"could not be checked: {type(error).__name__}: {text}"
        found.append(Finding("failed", name, text))
    return found


async def health(app_dir: Path | None, kind: str, console: Console) -> int:
    """Exit status 0 when a process of that ``kind`` on this host renewed its entry within three heartbeats, else 1;
    a Telegram front end without a token has nothing to do and is well."""
    host = socket.gethostname()
    if kind == "telegram" and load_quietly(app_dir).settings.telegram_bot_token is None:
        print_lines(console, ["idle: no TELEGRAM_BOT_TOKEN is set"])
        return 0
    async with visiting(app_dir, patience=HEALTH_SECONDS) as session:
        alive = [state for state in await live_processes(session.bus) if _is(state, kind, host)]
    names = ", ".join(short_process(state.process) for state in alive)
    print_lines(console, [f"alive: {names}" if alive else f"no process of kind {kind} on {host} is alive"])
    return 0 if alive else 1


def _is(state: ProcessState, kind: str, host: str) -> bool:
    serves = state.kind == kind or (kind == "http" and bool(state.http))
    return serves and short_process(state.process).rpartition(":")[0] == host


def _show_settings(application: Application, console: Console) -> None:
    print_lines(console, ["", "Settings in force"], style="bold")
    rows = []
    for name in (name for group in GROUPS for name in group.model_fields):
        variable = name.upper()
        value = _shown(getattr(application.settings, name))
        rows.append((variable, value, application.sources.get(variable, "default")))
    print_table(console, ("setting", "value", "from"), rows)


def _show_roles(application: Application, live: Mapping[str, int], console: Console) -> None:
    print_lines(console, ["", "Roles"], style="bold")
    rows = []
    for role in application.roles:
        count = live.get(role.name, application.count(role))
        source = source_of_count(application, role, role.name in live)
        origin = application.sources.get(f"{role.name} models", "")
        models = f"{', '.join(role.models)} ({origin})" if role.models else "none"
        rows.append((role.name, count, source, models, role.match or ""))
    print_table(console, ("role", "instances", "from", "models", "match"), rows, right=(1,))


def _show_findings(title: str, findings: Sequence[Finding], settings: Settings, console: Console) -> None:
    print_lines(console, ["", title], style="bold")
    lines = columns((finding.state, finding.name, finding.text) for finding in findings)
    indent = " " * (len(lines[0]) - len(findings[0].text)) if findings else ""
    for line, finding in zip(lines, findings, strict=True):
        shown = Text(settings.redacted(line))
        shown.stylize(STYLES[finding.state], 0, len(finding.state))
        console.print(shown, soft_wrap=True)
        if finding.remedy:
            print_lines(console, [f"{indent}→ {settings.redacted(finding.remedy)}"])


def _shown(value: object) -> str:
    if value is None:
        return "-"
    if isinstance(value, SecretStr):
        return "(set, secret)" if value.get_secret_value() else "-"
    return LOGIN.sub(rf"\1{HIDDEN}@", f"{value:g}" if isinstance(value, float) else str(value))
