"""docs/tools.md: its code works as the page says."""

from __future__ import annotations

import re
import subprocess
import sys
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from rolecall import Agent, Context, Envelope, Role, ToolServer
from rolecall.agent.mcp import ToolServerHost, ToolSession
from rolecall.cli.new import new
from rolecall.settings import Settings
from rolecall.testing import FakeModel, run_turn, tool_call

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs/tools.md").read_text()
FILES = dict(re.findall(r"^In `([\w./]+)`:\n\n```python\n(.*?)```", PAGE, re.MULTILINE | re.DOTALL))
BLOCKS = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
CONFIG_LINES = next(block for block in BLOCKS if "Role(ShopAgent" in block).splitlines()
SERVERS = next(block for block in BLOCKS if "tool_servers" in block)


class ManagerAgent(Agent):
    """Sends everything to the agent of the page."""

    async def handle(self, envelope: Envelope, ctx: Context) -> Envelope:
        return envelope.via(next(role for role in ctx.roles if role != "manager"))


def defined(file: str) -> dict[str, Any]:
    """What the code of ``file`` defines."""
    names: dict[str, Any] = {"__name__": Path(file).stem}
    exec(compile(FILES[file], file, "exec", dont_inherit=True), names)
    return names


async def test_a_tool_server_that_no_function_stands_in_for_ends_the_turn_of_a_test_with_its_reason() -> None:
    roles = [Role(ManagerAgent), Role(defined("agents/office.py")["OfficeAgent"], models=("fake@test",))]
    turn = await run_turn(roles, "Is there any tea?", tools={"shop": []})
    assert turn.kind == "error"
    assert "there is no tool server 'office' in tools= of run_turn; there are: shop" in turn.reason
    assert (await run_turn(roles, "Is there any tea?", tools={"office": []})).reason == ""


async def asked(agent: type[Agent], model: FakeModel, **options: Any) -> str:
    roles = [Role(ManagerAgent), Role(agent, models=("fake@test",))]
    return (await run_turn(roles, "Is there any tea?", model=model, **options)).text


def test_the_shop_works_in_a_new_application(tmp_path: Path) -> None:
    application = tmp_path / "shop"
    new(application, Console(file=StringIO()))
    for name in ("agents/shop.py", "tests/test_shop.py"):
        (application / name).write_text(FILES[name])
    config, (line, role) = (application / "config.py").read_text(), CONFIG_LINES
    config = config.replace("from agents.command", f"{line}\nfrom agents.command", 1)
    (application / "config.py").write_text(
        config.replace("        Role(StatsAgent)", f"{role}\n        Role(StatsAgent)", 1)
    )
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "tests/test_shop.py"],
        cwd=application,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=60,
    )
    assert "2 passed" in done.stdout, done.stdout


async def test_the_office_uses_the_tools_of_its_server() -> None:
    model = FakeModel(tool_call("stock", item="tea"), "There are 12.")
    functions = {"office": [defined("agents/shop.py")["stock"]]}
    assert await asked(defined("agents/office.py")["OfficeAgent"], model, tools=functions) == "There are 12."
    assert model.requests[1].messages[-1].text == "12"


async def test_the_contact_is_data() -> None:
    agent = defined("agents/contact.py")["ContactAgent"]
    assert await asked(agent, FakeModel('{"name": "Ann", "age": 34}')) == "Ann (34)"
    assert await asked(agent, FakeModel('{"name": "Bob"}')) == "Bob (age unknown)"


def test_the_tool_servers_of_the_page_can_be_configured() -> None:
    names: dict[str, Any] = {"ROLES": (Role(ManagerAgent),)}
    exec(SERVERS, names)
    servers = names["config"].tool_servers
    resolved = {name: server.resolved(name, {"OFFICE_KEY": "k"}) for name, server in servers.items()}
    assert resolved["office"].headers == {"Authorization": "Bearer k"}
    assert resolved["files"].only == ("read_text_file",)


@pytest.mark.parametrize("name", ["TOOL_SECONDS", "TOOL_CHARS", "TOOL_ROUNDS"])
def test_the_limits_are_those_in_force(name: str) -> None:
    stated = next(re.finditer(rf"`{name}` \((\d+)\)", PAGE))[1]
    assert float(stated) == Settings.model_fields[name.lower()].default


def test_what_a_program_writes_to_stderr_is_where_the_page_says(tmp_path: Path) -> None:
    session = ToolSession("files", ToolServer(command=("x",)), ToolServerHost(tmp_path, tmp_path / ".rolecall"))
    assert session.stderr_file.relative_to(tmp_path) == Path(".rolecall/tools/files.log")
    assert "`.rolecall/tools/<name>.log`" in PAGE
