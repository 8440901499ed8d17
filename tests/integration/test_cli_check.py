"""`rolecall check` without a running deployment, and on one that has problems."""

from __future__ import annotations

import asyncio
import re
import subprocess
import tempfile
import time
import tomllib
from pathlib import Path

import pytest

from rolecall.bus.bus import Bus, short_process
from rolecall.bus.process.processes import ProcessState, process_name, register
from rolecall.cli.checks.deployment_checks import EXTRAS
from rolecall.redis.server import RedisServer
from rolecall.settings import Settings
from tests.applications import AGENTS, CONFIG, make_application, run_rolecall
from tests.valkey import ValkeyProcess, server_binary


def rows(shown: str) -> dict[str, list[str]]:
    """The rows of all tables by their first word, in their cells."""
    return {line.split()[0]: line.split() for line in shown.splitlines() if line.strip()}


def test_a_good_application_passes_and_every_value_has_its_source(tmp_path: Path) -> None:
    directory = make_application(tmp_path, dotenv="SCAN_SECONDS=2\nOPENAI_API_KEY=sk-verysecret\n")
    done = run_rolecall("check", "--app", directory, environment={"LEASE_SECONDS": "20", "SAMPLELLM_INSTANCES": "3"})
    assert (done.stderr, done.returncode) == ("", 0)
    assert done.stdout.splitlines()[-1] == "Nothing failed."
    shown = rows(done.stdout)
    assert shown["LEASE_SECONDS"] == ["LEASE_SECONDS", "20", "environment"]
    assert shown["SCAN_SECONDS"] == ["SCAN_SECONDS", "2", ".env"]
    assert shown["APPENDFSYNC"] == ["APPENDFSYNC", "everysec", "config.py"]
    assert shown["MAX_DELIVERIES"] == ["MAX_DELIVERIES", "3", "default"]
    assert shown["OPENAI_API_KEY"] == ["OPENAI_API_KEY", "(set,", "secret)", ".env"]
    assert shown["samplellm"] == ["samplellm", "3", "environment", "echo@test", "(config.py)"]
    assert "sk-verysecret" not in done.stdout
    for line in ("bundled", "fsync takes", "echo@test  first word after", "one process needs up to 4", "11.8 GB"):
        assert line in done.stdout


def test_it_knows_every_extra_that_there_is() -> None:
    declared = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())
    others = {"all", "dev", "testing", "browser", "docs", "release"}
    assert set(EXTRAS) == set(declared["project"]["optional-dependencies"]) - others


def test_check_leaves_no_server_behind(tmp_path: Path) -> None:
    directory = make_application(tmp_path)
    assert "started for this check alone" in run_rolecall("check", "--app", directory).stdout
    assert "nothing is running" in run_rolecall("stats", "--app", directory).stderr


def test_each_problem_is_named_with_what_to_do(tmp_path: Path) -> None:
    config = CONFIG.replace("(Role(ManagerAgent),", '(Role(ManagerAgent, match="/x"), Role(TwinAgent, match="/X"),')
    config = config.replace("ManagerAgent, S", "ManagerAgent, TwinAgent, S").replace("echo@test", "x@nowhere")
    agents = f'{AGENTS}\n\nclass TwinAgent(Agent):\n    """Never asked."""\n\n    handle = ManagerAgent.handle\n'
    directory = make_application(
        tmp_path, config=config, agents=agents, dotenv="OPENAI_API_KEY=sk-verysecret\nLEASE_SECOND=20\nMY_OWN=1\n"
    )
    (directory / ".env").chmod(0o644)
    (directory / "log").touch()
    done = run_rolecall("check", "--app", directory, environment={"TZ": "Mars/Base", "SHARDS": "100"})
    assert (done.stderr, done.returncode) == ("", 1)
    for said in (
        "x@nowhere  model 'x@nowhere' is invalid: expected name@provider",
        "role samplellm has no other model",
        "match='/X' is another role's too",
        f"chmod 600 {directory}/.env",
        "LEASE_SECOND is not a setting of Rolecall",
        "did you mean LEASE_SECONDS?",
        "TZ=Mars/Base is invalid",
        "set REDIS_MAX_CONNECTIONS=103 or more",
        "log directory",
    ):
        assert said in done.stdout
    assert "sk-verysecret" not in done.stdout and "MY_OWN" not in done.stdout


def test_a_server_that_is_away_is_a_finding_without_its_password(tmp_path: Path) -> None:
    directory = make_application(tmp_path)
    done = run_rolecall("check", "--app", directory, environment={"REDIS_URL": "redis://user:hunter2@127.0.0.1:1/0"})
    assert (done.stderr, done.returncode) == ("", 1)
    assert "no server answers at redis://127.0.0.1:1/0" in done.stdout
    assert "hunter2" not in done.stdout
    done = run_rolecall("check", "--app", directory, environment={"REDIS_URL": "redis://127.0.0.1:1/0"})
    assert "no server answers at redis://127.0.0.1:1/0" in done.stdout
    done = run_rolecall("check", "--app", directory, environment={"REDIS_URL": "127.0.0.1:1"})
    assert "expected redis://user:password@host:6379/0" in done.stdout


def test_a_server_of_one_s_own_is_judged_and_nothing_is_written_to_it(tmp_path: Path) -> None:
    server = ValkeyProcess(tmp_path, "--maxmemory", "100mb", "--maxmemory-policy", "allkeys-lru")
    server.start()
    try:
        directory = make_application(tmp_path / "app")
        done = run_rolecall("check", "--app", directory, environment={"REDIS_URL": server.url})
        assert done.returncode == 1
        assert "maxmemory-policy allkeys-lru" in done.stdout
        assert "no append-only file: a restart loses accepted turns" in done.stdout
        assert "maxmemory is 0.1 GB" in done.stdout
        assert (
            "none there yet" in run_rolecall("check", "--app", directory, environment={"REDIS_URL": server.url}).stdout
        )
    finally:
        server.kill()


@pytest.mark.parametrize(
    ("rights", "refused"),
    [
        (["~*", "resetchannels", "+@all"], "channel"),  # what a new user of Redis 7 may do
        (["~other:*", "&*", "+@all"], "key"),
        (["~*", "&*", "+ping", "+hello", "+client", "+info"], "command"),
    ],
)
async def test_a_user_of_the_server_who_may_too_little_is_told_what_is_needed(
    tmp_path: Path, rights: list[str], refused: str
) -> None:
    process = ValkeyProcess(tmp_path)
    process.start()
    server = RedisServer(process.url)
    try:
        await server.call("ACL", "SETUSER", "few", "on", ">secret", *rights)
        directory = make_application(tmp_path / "app")
        environment = {"REDIS_URL": process.url.replace("://", "://few:secret@")}
        for verb in ("worker", "stats", "check"):
            done = await asyncio.to_thread(run_rolecall, verb, "--app", directory, environment=environment)
            said = done.stdout if verb == "check" else done.stderr.splitlines()[-1]
            told = (
                rf"o permissions to [^;]*{refused}[^;]*; its ACL must allow the keys ~{{bus:\*, the channels &{{bus:\*"
            )
            assert done.returncode and re.search(told, said), said
    finally:
        await server.aclose()
        process.kill()


async def test_a_user_who_may_only_read_is_a_failure_that_names_the_rights(tmp_path: Path) -> None:
    process = ValkeyProcess(tmp_path)
    process.start()
    server = RedisServer(process.url)
    try:
        await server.call("ACL", "SETUSER", "few", "on", ">secret", "~*", "&*", "+@all", "-@write")
        environment = {"REDIS_URL": process.url.replace("://", "://few:secret@")}
        directory = make_application(tmp_path / "app")
        done = await asyncio.to_thread(run_rolecall, "check", "--app", directory, environment=environment)
        assert await server.call("DBSIZE") == 0
    finally:
        await server.aclose()
        process.kill()
    assert done.returncode == 1
    assert re.search(r"failed +rights +the server's user lacks .*\+set \+del", done.stdout)


@pytest.mark.parametrize(
    ("default", "own", "said"),
    [
        ("-@all", "+@all", r"failed +restart .* would forget what scripts wrote"),
        ("~* &* +@all", "+@all", r"passed +restart"),
        ("-@all", "+@all -acl", r"not set up +restart .*may not ask"),
    ],
)
def test_a_redis_7_0_that_would_forget_at_a_restart_is_named(default: str, own: str, said: str, tmp_path: Path) -> None:
    users = tmp_path / "users.acl"
    users.write_text(f"user default off resetkeys resetchannels {default}\nuser me on >pw ~* &* {own}\n")
    directory = make_application(tmp_path / "app")
    with tempfile.TemporaryDirectory(dir="/tmp") as place:
        server = ValkeyProcess(Path(place), "--aclfile", str(users), durable=True, binary=server_binary("redis"))
        server.start(ready=False)
        url = f"unix://me:pw@{server.socket}"
        shown = run_rolecall("check", "--app", directory, environment={"REDIS_URL": url}).stdout
        server.kill()
    assert re.search(said, shown)


async def test_a_server_nearly_full_and_a_scribe_that_cannot_write_are_named(tmp_path: Path) -> None:
    process = ValkeyProcess(tmp_path)
    process.start()
    server = RedisServer(process.url)
    try:
        state = ProcessState("host:1~aaaaaa", scribe=True, problem="no space for transcripts in /log")
        await register(Bus(server, Settings(heartbeat_seconds=60, lease_seconds=120), state.process), state)
        await server.call("CONFIG", "SET", "maxmemory", int((await server.info("memory"))["used_memory"]) * 105 // 100)
        directory, environment = make_application(tmp_path / "app"), {"REDIS_URL": process.url}
        done = await asyncio.to_thread(run_rolecall, "check", "--app", directory, environment=environment)
    finally:
        await server.aclose()
        process.kill()
    assert done.returncode == 1
    assert "it uses over 90% of its memory limit" in done.stdout
    assert "host:1: no space for transcripts in /log" in done.stdout


async def test_processes_that_started_before_the_settings_changed_are_named(tmp_path: Path) -> None:
    process = ValkeyProcess(tmp_path)
    process.start()
    server = RedisServer(process.url)
    directory = make_application(tmp_path / "app")
    (directory / ".env").touch()
    try:
        for state in (ProcessState(process_name(), uptime=60), ProcessState("elsewhere:1~aaaaaa", uptime=60)):
            await register(Bus(server, Settings(heartbeat_seconds=60, lease_seconds=120), state.process), state)
        environment = {"REDIS_URL": process.url}
        done = await asyncio.to_thread(run_rolecall, "check", "--app", directory, environment=environment)
    finally:
        await server.aclose()
        process.kill()
    assert f".env was changed after {short_process(process_name())} started: restart" in done.stdout


def test_a_full_disk_of_the_transcripts_is_a_finding(tmp_path: Path) -> None:
    directory = make_application(tmp_path)
    (directory / "log").mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "none", directory / "log"], capture_output=True)
    if mounted.returncode:
        pytest.skip("only root may make a tiny disk")
    try:
        (directory / "log" / "ballast").write_bytes(b"x" * 60_000)
        done = run_rolecall("check", "--app", directory)
    finally:
        subprocess.run(["umount", directory / "log"], check=True)
    assert done.returncode == 1
    assert "No space left on device" in done.stdout and "free space there, or choose another place" in done.stdout


def test_every_verb_refuses_a_bad_value_in_one_line_with_status_two(tmp_path: Path) -> None:
    directory = make_application(tmp_path)
    for verb in (("check",), ("up",), ("worker",), ("stats",), ("top",), ("scale",), ("logs",), ("dead", "list")):
        done = run_rolecall(*verb, "--app", directory, environment={"LEASE_SECONDS": "abc"})
        assert (done.stdout, done.returncode) == ("", 2), verb
        assert done.stderr == (
            "rolecall: LEASE_SECONDS=abc from environment is invalid: expected a number over 0 and up to 86400\n"
        )


def test_a_problem_inside_the_running_parts_is_one_line_too(tmp_path: Path) -> None:
    directory = make_application(tmp_path, config=CONFIG.replace("echo@test", "x@nowhere"))
    done = run_rolecall("up", "--no-chat", "--app", directory)
    assert (done.returncode, done.stderr.splitlines()[-1].partition(":")[0]) == (2, "rolecall")
    assert "role samplellm has no usable model" in done.stderr
    assert "Traceback" not in done.stderr


STRANGE = {
    "option": {"REDIS_URL": "redis://127.0.0.1:1/0?family=0"},
    "password": {"REDIS_URL": "redis://:hun/ter2@127.0.0.1:1"},
    "host": {"REDIS_HOST": "http://127.0.0.1"},
    "proxies": {"NO_PROXY": "localhost,::1/128", "ALL_PROXY": "socks5://127.0.0.1:1"},
    "zone": {"TZ": "Mars/Base"},
    "addresses": {"OPENAI_BASE_URL": "nowhere", "LOCAL_URL": "http://[::1", "TELEGRAM_API_URL": "x"},
    "token": {"TELEGRAM_BOT_TOKEN": "1:é", "TELEGRAM_API_URL": "http://127.0.0.1:1"},
    "directory": {"LOG_DIR": "/proc/nowhere"},
}


@pytest.mark.parametrize("strange", list(STRANGE))
def test_whatever_it_finds_it_goes_on_to_its_end(tmp_path: Path, strange: str) -> None:
    done = run_rolecall("check", "--app", make_application(tmp_path), environment=STRANGE[strange])
    assert "Traceback" not in done.stdout + done.stderr and "hun" not in done.stdout + done.stderr
    if done.stdout:
        assert done.stdout.splitlines()[-1] == "Nothing failed." or "of these failed" in done.stdout.splitlines()[-1]
    else:
        assert done.stderr.startswith("rolecall: ") and len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize("state", ["replica", "frozen", "gone"])
def test_a_health_check_answers_before_its_probe_gives_up(tmp_path: Path, state: str) -> None:
    server = ValkeyProcess(tmp_path, *(["--replicaof", "127.0.0.1 1"] if state == "replica" else []))
    server.start()
    try:
        directory = make_application(tmp_path / "app")
        if state != "replica":
            server.freeze() if state == "frozen" else server.kill()
        began = time.monotonic()
        done = run_rolecall("health", "worker", "--app", directory, environment={"REDIS_URL": server.url})
        assert time.monotonic() - began < 10, done.stderr  # the shortest timeout, of deploy/kubernetes
        assert done.returncode == 1 and done.stderr.splitlines()[-1].startswith("rolecall: ")
    finally:
        server.kill()
