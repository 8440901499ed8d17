"""The files of a deployment hold together: Compose, images, locks, the server's users, and what `init` makes."""

from __future__ import annotations

import importlib.util
import re
import stat
import tempfile
import tomllib
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import yaml

from rolecall.cli.checks.server_checks import ServerLook, look_at_server
from rolecall.config import standalone
from rolecall.errors import ServerRefused
from rolecall.redis import keys, rights
from rolecall.redis.server import RedisServer, connected
from rolecall.settings import Settings
from tests.unit.test_env_example import rendered as env_example
from tests.unit.test_keys import all_keys
from tests.valkey import ValkeyProcess, server_binary
from tests.waiting import wait_until

ROOT = Path(__file__).parents[2]
COMPOSE = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
SERVICES: dict[str, Any] = COMPOSE["services"]
LOCKS = sorted((ROOT / "deploy" / "lock").glob("*.txt"))
SHARD = keys.ShardKeys(3)
SECRET = re.compile(r"PASSWORD|TOKEN|SECRET|_KEY")
IN_LUA = re.compile(r"redis\.p?call\(\s*['\"](\w+)['\"](?:\s*,\s*['\"](CREATE|DELCONSUMER)['\"])?")
IN_PYTHON = re.compile(
    r"(?:call|fetch|send|read|send_command|_send)\(\s*\"([A-Z]{2,})\"(?:\s*,\s*\"(ID|UNBLOCK|CREATE|LOAD)\")?"
)
NO_COMMANDS = {"block", "streams", "config"}
"""Words that look like one in our code, and what `rolecall check` alone asks, which may be refused."""


def init_module() -> ModuleType:
    spec = importlib.util.spec_from_file_location("deploy_init", ROOT / "deploy" / "compose" / "init.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


INIT = init_module()


# ── Compose ─────────────────────────────────────────────────────────────────────────────────────


def test_every_variable_is_explained_in_the_example() -> None:
    text = (ROOT / "docker-compose.yml").read_text()
    named = set(re.findall(r"\$\{([A-Z_]+)", text))
    explained = set(re.findall(r"^#([A-Z_]+)=", env_example(), re.MULTILINE))
    assert named <= explained
    given = {name for service in SERVICES.values() for name in service.get("environment", {})}
    known = {name.upper() for name in Settings.model_fields} | explained | {"ROLECALL_STAY"}
    assert {name.removesuffix("_FILE") for name in given} <= known


def test_there_is_no_default_password_anywhere() -> None:
    for name, service in SERVICES.items():
        for variable, value in service.get("environment", {}).items():
            if SECRET.search(variable):
                assert value == "" or value.startswith("/run/secrets/"), (name, variable)
    assert not re.search(r"[>#][^\s<#]", (ROOT / "deploy/valkey/users.acl.template").read_text().split("\nuser", 1)[1])


def test_every_service_has_no_more_rights_than_it_needs() -> None:
    for name, service in SERVICES.items():
        assert service["read_only"] and service["init"] and service["cap_drop"] == ["ALL"], name
        assert service["security_opt"] == ["no-new-privileges:true"], name
        assert "ROLECALL_UID" in service["user"] and service["mem_limit"] and service["pids_limit"], name
        assert service["logging"]["options"]["max-size"], name
        assert not service.get("privileged") and "/var/run/docker.sock" not in str(service.get("volumes")), name


def test_the_front_alone_is_published_and_to_this_machine_alone() -> None:
    assert {name: service["ports"] for name, service in SERVICES.items() if "ports" in service} == {
        "front": ["127.0.0.1:${HTTP_PORT:-10007}:10007"]
    }
    assert COMPOSE["networks"]["bus"] == {"internal": True}
    assert SERVICES["valkey"]["networks"] == SERVICES["model"]["networks"] == ["bus"]


def test_no_service_is_given_the_secrets_of_another() -> None:
    models = {"OPENAI_API_KEY", "ANTHROPIC_API_KEY", "GOOGLE_API_KEY", "GEMINI_API_KEY", "OLLAMA_API_KEY", "LOCAL_KEY",
              "OTEL_EXPORTER_OTLP_HEADERS", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"}  # fmt: skip
    own = {"worker": models,
           "telegram": {"TELEGRAM_BOT_TOKEN", "TELEGRAM_INVITE_CODE", "TELEGRAM_WEBHOOK_SECRET"},
           "front": set(), "rolecall": set()}  # fmt: skip
    secret = {name.upper() for name, field in Settings.model_fields.items() if "SecretStr" in str(field.annotation)}
    for name, mine in own.items():
        hidden = {variable for variable, value in SERVICES[name]["environment"].items() if value == ""}
        assert secret - mine <= hidden, name
        assert {f"VALKEY_{user.upper()}_PASSWORD" for user in INIT.USERS} <= hidden, name


def test_each_waits_for_what_it_needs_and_drains_in_time() -> None:
    for name in ("worker", "front", "telegram"):
        service = SERVICES[name]
        assert service["depends_on"]["valkey"]["condition"] == "service_healthy"
        assert service["depends_on"]["init"]["condition"] == "service_completed_successfully"
        assert service["healthcheck"]["test"][:3] == ["CMD", "rolecall", "health"]
        assert service["restart"] == "unless-stopped"
    assert int(SERVICES["worker"]["stop_grace_period"].removesuffix("s")) > Settings().drain_seconds


# ── locks ───────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("lock", LOCKS, ids=lambda path: path.stem)
def test_a_lock_has_hashes_for_everything_and_names_no_index(lock: Path) -> None:
    text = lock.read_text()
    assert "://" not in text and "index" not in text and "file:" not in text
    entries = re.split(r"\n(?=[a-z])", re.sub(r"^#.*\n", "", text, flags=re.MULTILINE))
    for entry in entries:
        assert re.match(r"[a-z0-9_.-]+(\[[a-z0-9,-]+\])?==[^ ]+( ;[^\\]+)? \\\n", entry), entry[:60]
        assert "--hash=sha256:" in entry


def test_the_lock_has_what_the_package_needs() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = re.search(r"^EXTRAS := (.+)$", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert extras is not None
    wanted = [*project["dependencies"]]
    for extra in extras[1].split():
        wanted += project["optional-dependencies"][extra]
    lock = (ROOT / "deploy/lock/rolecall.txt").read_text()
    locked = set(re.findall(r"^([a-z0-9_.-]+)(?:\[[a-z0-9,-]+\])?==", lock, re.MULTILINE))
    names = {re.split(r"[\[<>=;! ]", line)[0].lower().replace("_", "-") for line in wanted}
    assert names <= locked, "make lock"


# ── the server's users ──────────────────────────────────────────────────────────────────────────


@pytest.fixture
async def users(server: RedisServer) -> Any:
    text = INIT.rendered(INIT.TEMPLATE.read_text(), dict.fromkeys((*INIT.USERS, "health"), "x" * 22))
    names = []
    for line in text.splitlines():
        _, name, *rules = line.split()
        if name != "default":
            await server.call("ACL", "SETUSER", name, "reset", *rules)
            names.append(name)
    yield server
    await server.call("ACL", "DELUSER", *names)


async def allowed(server: RedisServer, user: str, *command: str) -> bool:
    return bool(await server.call("ACL", "DRYRUN", user, *command) == b"OK")


def commands_used() -> Iterator[tuple[str, ...]]:
    source = ROOT / "src" / "rolecall"
    for pattern, paths in ((IN_LUA, source.rglob("*.lua")), (IN_PYTHON, source.rglob("*.py"))):
        for path in paths:
            for found in pattern.findall(path.read_text()):
                if found[0].lower() not in NO_COMMANDS:
                    yield tuple(word for word in found if word)


async def test_every_command_of_the_code_is_allowed_to_those_who_run_it(users: RedisServer) -> None:
    for user in INIT.USERS:
        line = next(raw for raw in await users.call("ACL", "LIST") if raw.startswith(f"user {user} ".encode())).decode()
        rules = set(line.split())
        for command in sorted(set(commands_used())):
            assert rules & {f"+{'|'.join(command).lower()}", f"+{command[0].lower()}"}, (user, command)


async def test_a_shards_keys_are_for_all_services_and_the_others_for_who_needs_them(users: RedisServer) -> None:
    of_shard = [*all_keys(SHARD, "a:b", "c", "1", "manager"), keys.WORKERS, keys.worker("host:1~a"), keys.META]
    of_shard.remove(SHARD.channel("a:b"))
    for user in ("worker", "front", "telegram", "operator"):
        for key in of_shard:
            assert await allowed(users, user, "DEL", key), (user, key)
    may_write = {
        keys.API_KEYS: {"operator"}, keys.login("x"): {"front", "operator"}, keys.SCALE: {"operator"},
        keys.model("m@p", "state"): {"worker", "operator"}, keys.spent("20261121"): {"worker", "operator"},
        keys.lease("scribe"): {"worker", "operator"}, keys.lease("telegram"): {"telegram", "operator"},
        keys.front("telegram", "members"): {"telegram", "operator"}, "{bus:0}:served": {"worker", "operator"},
        f"{keys.ShardKeys(3, 8).prefix}:model:m@p:state": {"worker", "operator"},  # of a cluster
        keys.SERIES: {"front", "operator"}, keys.SERIES_DAY: {"front", "operator"},
    }  # fmt: skip
    for key, who in may_write.items():
        assert {user for user in INIT.USERS if await allowed(users, user, "DEL", key)} == who, key
    assert await allowed(users, "front", "HGETALL", keys.API_KEYS)
    assert not await allowed(users, "worker", "HGETALL", keys.API_KEYS)
    assert await allowed(users, "front", "HGETALL", keys.front("telegram", "members"))
    servers = (keys.SERVED, keys.SERVED_CALLS, keys.SERVED_USERS, keys.SERVED_FAILED)
    assert await allowed(users, "front", "EVALSHA_RO", "0" * 40, str(len(servers)), *servers)
    assert not await allowed(users, "front", "EVALSHA", "0" * 40, str(len(servers)), *servers)
    assert not await allowed(users, "telegram", "GET", keys.login("x"))


def test_the_users_are_given_the_commands_that_are_asked_for() -> None:
    line = re.search(r"^define commands -@all ([^\n]*(?:\n  [^\n]*)*)", INIT.TEMPLATE.read_text(), re.MULTILINE)
    assert line is not None
    asked = {*rights.CALLS, *rights.CALLS_OF_CLUSTERS, *rights.WELCOME}
    assert set(line[1].split()) == {f"+{command}" for command in asked}


@pytest.mark.parametrize("clustered", [False, True])
@pytest.mark.parametrize(
    ("user", "verbs"),
    [("worker", "worker"), ("front", "http"), ("telegram", "telegram"), ("operator", "worker http telegram key scale")],
)
async def test_each_user_has_the_rights_for_its_process(
    users: RedisServer, user: str, verbs: str, clustered: bool
) -> None:
    async with connected(users.url.replace("://", f"://{user}:{'x' * 22}@")) as its:
        missing = await rights.missing_rights(its, keys.all_shards(2), clustered=clustered)
    assert [verb for verb, rules in missing.items() if not rules] == ["", *verbs.split()]


@pytest.mark.parametrize("user", ["worker", "front", "telegram", "operator"])
async def test_check_finds_nothing_wrong_with_any_of_them(users: RedisServer, user: str, tmp_path: Path) -> None:
    url, look = users.url.replace("://", f"://{user}:{'x' * 22}@"), ServerLook()
    assert await look_at_server(standalone(url, tmp_path), look) == []
    assert [finding for finding in look.findings if finding.state == "failed"] == []
    assert "rights" in {finding.name for finding in look.findings}


@pytest.mark.parametrize(
    ("given", "lacking"),
    [
        ("~* &* +@all -xadd -xgroup|create", {"+xadd", "+xgroup|create"}),
        ("~* +@all resetchannels", {"&{bus:0}:control", "&{bus:0}:ev:*", "&{bus:1}:ev:*"}),
        ("~{bus:0}* &* +@all", {f"~{{bus:1}}:{key}" for key in ("c:*", "l", "zs", "clock", "up:*")}),
        ("~{bus:*}:?:* ~{bus:0}:m* ~{bus:0}:p* ~{bus:*}:zs &* +@all", {
            *(f"~{{bus:{shard}}}:{key}" for shard in (0, 1) for key in ("l", "clock", "up:*")),
        }),
    ],
)  # fmt: skip
async def test_what_a_user_lacks_is_named_as_its_acl_would_have_it(
    server: RedisServer, given: str, lacking: set[str]
) -> None:
    await server.call("ACL", "SETUSER", "few", "reset", "on", ">secret", *given.split())
    async with connected(server.url.replace("://", "://few:secret@")) as its:
        missing = await rights.missing_rights(its, keys.all_shards(2), clustered=False)
        with pytest.raises(ServerRefused, match=rf"lacks {re.escape(missing[''][0])}.*; its ACL must allow the keys"):
            await rights.check_rights(its, keys.all_shards(2), clustered=False)
    await server.call("ACL", "DELUSER", "few")
    assert set(missing[""]) == lacking


async def test_who_may_only_read_lacks_every_command_that_writes(server: RedisServer) -> None:
    await server.call("ACL", "SETUSER", "reader", "reset", "on", ">secret", "~*", "&*", "+@all", "-@write")
    async with connected(server.url.replace("://", "://reader:secret@")) as its:
        missing = await rights.missing_rights(its, keys.all_shards(1), clustered=False)
    await server.call("ACL", "DELUSER", "reader")
    assert {"+set", "+xadd", "+hset", "+xreadgroup"} <= set(missing[""])
    assert not {"+get", "+xread", "+eval", "+publish"} & set(missing[""])


async def test_nobody_may_do_more(users: RedisServer) -> None:
    forbidden = ["FLUSHALL", "FLUSHDB", "KEYS *", "SCAN 0", "MONITOR", "ACL LIST", "ACL WHOAMI", "CLIENT LIST",
                 "CLIENT KILL TYPE normal", "CONFIG SET dir /", "SCRIPT FLUSH", "SHUTDOWN", "SAVE", "DEBUG SLEEP 0",
                 "REPLICAOF NO ONE", "GET elsewhere", "PUBLISH elsewhere x", "SUBSCRIBE elsewhere", "PSUBSCRIBE *",
                 "FUNCTION LIST", "SWAPDB 0 1", "MODULE LIST"]  # fmt: skip
    for user in (*INIT.USERS, "health"):
        for command in forbidden:
            assert not await allowed(users, user, *command.split()), (user, command)
        assert await allowed(users, user, "PING")
    assert not await allowed(users, "health", "GET", "{bus:0}:meta")


# ── what init makes ─────────────────────────────────────────────────────────────────────────────


def made(directory: Path, **environ: str) -> list[str]:
    for user in (*INIT.USERS, "valkey", "model"):
        (directory / user).mkdir(exist_ok=True)
    return list(INIT.make(environ, directory))


def test_it_makes_what_is_not_given_for_the_owner_alone_and_changes_nothing_the_next_time(tmp_path: Path) -> None:
    assert len(made(tmp_path)) == 7
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    assert all(stat.S_IMODE(path.stat().st_mode) == 0o400 for path in before)
    secrets = {path.read_text() for path in before if path.name != "users.acl"}
    assert all(len(secret) >= 22 for secret in secrets) and len(secrets) == 7
    acl = (tmp_path / "valkey" / "users.acl").read_text()
    assert not any(secret in acl for secret in secrets) and "<" not in acl
    assert [line.split()[1] for line in acl.splitlines()] == ["default", "health", *INIT.USERS]
    assert made(tmp_path) == []
    assert before == {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}


@pytest.mark.parametrize("kind", ["valkey", "redis"])
async def test_with_these_users_a_server_has_what_scripts_wrote_after_a_restart(kind: str) -> None:
    with tempfile.TemporaryDirectory(dir="/tmp") as place:
        made(directory := Path(place))
        users = directory / "valkey" / "users.acl"
        if kind == "redis":
            users.chmod(0o600)
            users.write_text(users.read_text().replace("+client|setinfo", ""))
        server = ValkeyProcess(directory, "--aclfile", str(users), durable=True, binary=server_binary(kind))
        server.start(ready=False)
        password = (directory / "worker" / "redis-password").read_text()
        worker = RedisServer(f"unix://worker:{password}@{server.socket}")
        try:
            both = "redis.call('HSET', KEYS[1], 'f', 1) redis.call('HSET', KEYS[2], 'f', 2)"
            await worker.call("EVAL", both, 2, keys.META, keys.METRICS)
            server.kill()
            server.start(ready=False)
            await wait_until(lambda: worker.fetch("HGET", keys.METRICS, "f"))
        finally:
            await worker.aclose()
            server.kill()


def test_permissions_of_a_newer_version_are_told_as_new_once(tmp_path: Path) -> None:
    made(tmp_path)
    (tmp_path / "valkey" / "users.acl").write_text("user default off\n")
    assert made(tmp_path) == ["permissions of the services"]
    assert made(tmp_path) == []


def test_what_is_given_is_taken_and_told_as_new_once(tmp_path: Path) -> None:
    made(tmp_path)
    given = {"VALKEY_WORKER_PASSWORD": "a-password-of-ones-own-choice", "HTTP_KEY": "k" * 40}
    assert made(tmp_path, **given) == ["password of worker", "API key"]
    assert made(tmp_path, **given) == made(tmp_path) == []
    assert (tmp_path / "front" / "http-key").read_text() == "k" * 40


def test_bad_input_is_one_clear_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for bad in ("short", "with a blank in the middle", "x" * 21 + "\t"):
        with pytest.raises(INIT.Wrong, match=r"_PASSWORD=\(secret\) is invalid: expected 22 to 200") as caught:
            made(tmp_path, VALKEY_FRONT_PASSWORD=bad)
        assert bad not in str(caught.value)
    assert INIT.main({}, tmp_path, tmp_path / "nowhere") == 1
    said = capsys.readouterr().err
    assert said.startswith("init: the directory log cannot be written by user") and "chown" in said
    assert said.count("\n") == 1
