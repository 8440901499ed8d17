"""Settings and roles: what is in force, where it came from, and how what is wrong is refused."""

from __future__ import annotations

import ast
import inspect
import shutil
import subprocess
import sys
from collections.abc import Iterator
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from rolecall import Agent, Config, Role
from rolecall.config import Application, load, misspelt
from rolecall.environment import application_directory
from rolecall.errors import ConfigError
from rolecall.models.vectors import EXAMPLE
from rolecall.session import configured_url, connections_needed, open_session
from rolecall.settings import Settings, time_zone
from tests.applications import AGENTS, CONFIG, clean_environment, make_application, own_modules

HOST, ORIGIN = "chat.example.org", "https://app.example.org"
ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(autouse=True)
def bare_environment(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    for name in [*(name.upper() for name in Settings.model_fields), "SAMPLELLM_INSTANCES", "ROLECALL_APP"]:
        monkeypatch.delenv(name, raising=False)
    with own_modules():
        yield


def application(directory: Path, dotenv: str = "", **changes: str) -> Application:
    """What is loaded from an application with ``changes`` to its config.py."""
    config = CONFIG
    for old, new in changes.items():
        config = config.replace(old, new)
    return load(make_application(directory, config=config, dotenv=dotenv))


def refusal(directory: Path, dotenv: str = "", **changes: str) -> str:
    with pytest.raises(ConfigError) as caught:
        application(directory, dotenv, **changes)
    assert "\n" not in str(caught.value)
    return str(caught.value)


# ── precedence and sources ──────────────────────────────────────────────────────────────────────


def test_the_environment_is_over_dotenv_over_config_over_the_defaults(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LEASE_SECONDS", "30")
    loaded = application(tmp_path, "LEASE_SECONDS=20\nSCAN_SECONDS=2\nHEARTBEAT_SECONDS=1\n")
    settings = loaded.settings
    assert (settings.lease_seconds, settings.scan_seconds, settings.heartbeat_seconds) == (30, 2, 1)
    assert (settings.appendfsync, settings.max_deliveries) == ("everysec", 3)
    assert loaded.sources["LEASE_SECONDS"] == "environment"
    assert loaded.sources["SCAN_SECONDS"] == loaded.sources["HEARTBEAT_SECONDS"] == ".env"
    assert loaded.sources["APPENDFSYNC"] == "config.py"
    assert "MAX_DELIVERIES" not in loaded.sources


@pytest.mark.parametrize("value", ["a${HOME}b", "$HOME", "a#b", "${", "a=b", "%20"])
@pytest.mark.parametrize("quote", ["", "'", '"'])
def test_a_value_of_dotenv_is_taken_as_it_stands(tmp_path: Path, value: str, quote: str) -> None:
    settings = application(tmp_path, f"REDIS_PASSWORD={quote}{value}{quote}\n").settings
    assert settings.redis_password is not None and settings.redis_password.get_secret_value() == value


def test_dotenv_with_a_byte_order_mark_and_former_names_is_read(tmp_path: Path) -> None:
    settings = application(tmp_path, "\ufeffSCAN_SECONDS=2\r\nRETRIES=5\r\n").settings
    assert (settings.scan_seconds, settings.max_deliveries) == (2, 5)


@pytest.mark.parametrize(
    ("name", "winter", "summer"),
    [
        ("Europe/Berlin", 1, 2), (":Europe/Berlin", 1, 2), ("CET-1CEST,M3.5.0,M10.5.0/3", 1, 2), ("UTC", 0, 0),
        ("<+03>-3", 3, 3), ("EST5", -5, -5), ("EST5EDT", -5, -4), ("/usr/share/zoneinfo/Europe/Berlin", 1, 2),
    ],
)  # fmt: skip
def test_a_time_zone_is_written_as_the_c_library_takes_it(name: str, winter: int, summer: int) -> None:
    if name.startswith("/") and not Path(name).exists():
        pytest.skip("no zoneinfo files on this machine")
    zone = time_zone(name)
    hours = [datetime(2026, month, 15, tzinfo=zone).utcoffset() for month in (1, 7)]
    assert hours == [timedelta(hours=winter), timedelta(hours=summer)]


@pytest.mark.parametrize(
    "name", ["Mars/Base", "Europe", "../etc", "CET-1CEST,M3.5", "/etc/hostname", "/nowhere", "\x00"]
)
def test_what_is_no_time_zone_is_refused_in_one_line(name: str) -> None:
    with pytest.raises(ConfigError, match="is invalid: expected a time zone such as Europe/Berlin"):
        time_zone(name)


def test_an_empty_variable_and_an_unknown_one_change_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MAX_DELIVERIES", "")
    loaded = application(tmp_path, "SCAN_SECONDS=\nSOMETHING_ELSE=1\n")
    assert (loaded.settings.max_deliveries, loaded.settings.scan_seconds) == (3, 3)


def test_white_space_around_a_value_is_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-of-a-file\n")  # as `echo` writes it into a secret of Kubernetes
    monkeypatch.setenv("KEY_PREFIX", " staging ")
    monkeypatch.setenv("ANTHROPIC_API_KEY", "\n")
    settings = application(tmp_path, "TELEGRAM_BOT_TOKEN=' 4242:token '").settings
    secrets = [value.get_secret_value() for value in (settings.openai_api_key, settings.telegram_bot_token) if value]
    assert (secrets, settings.key_prefix) == (["sk-of-a-file", "4242:token"], "staging")
    assert settings.anthropic_api_key is None


def test_a_former_name_still_works_with_one_line_that_names_the_new_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("RETRIES", "5")
    loaded = application(tmp_path, "MAX_DELIVERIES=4\n")
    assert (loaded.settings.max_deliveries, loaded.sources["MAX_DELIVERIES"]) == (5, ".env")
    assert caplog.messages == ["RETRIES still works, but is called MAX_DELIVERIES now: rename it"]


def test_a_former_name_still_works_in_config(tmp_path: Path) -> None:
    assert application(tmp_path, **{"heartbeat_seconds=0.5": "retries=7"}).settings.max_deliveries == 7


def test_a_count_comes_from_the_environment_over_dotenv_over_config(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert [role.instances for role in application(tmp_path).roles] == [1, 2]
    assert [role.instances for role in application(tmp_path, "SAMPLELLM_INSTANCES=5\n").roles] == [1, 5]
    monkeypatch.setenv("SAMPLELLM_INSTANCES", "7")
    loaded = load(tmp_path)
    assert [role.instances for role in loaded.roles] == [1, 7]
    assert loaded.sources["SAMPLELLM_INSTANCES"] == "environment"


def test_a_blank_in_the_environment_sets_nothing_hides_nothing_and_is_no_source(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, blank in (("SCAN_SECONDS", " "), ("SAMPLELLM_INSTANCES", ""), ("OPENAI_API_KEY_FILE", ""), ("TZ", "\t")):
        monkeypatch.setenv(name, blank)
    (tmp_path / "key").write_text("sk-1234567890")
    given = f"SCAN_SECONDS=2\nSAMPLELLM_INSTANCES=5\nOPENAI_API_KEY_FILE={tmp_path / 'key'}\nLOG_DIR=  \n"
    loaded = application(tmp_path, given)
    assert (loaded.settings.scan_seconds, loaded.counts["samplellm"], loaded.settings.log_dir) == (2, 5, "log")
    assert loaded.settings.openai_api_key is not None
    assert (loaded.sources["SCAN_SECONDS"], loaded.sources["SAMPLELLM_INSTANCES"]) == (".env", ".env")
    assert not {"TZ", "LOG_DIR"} & loaded.sources.keys()


def test_auto_is_what_the_local_server_answers_at_once_and_one_for_models_elsewhere(tmp_path: Path) -> None:
    loaded = application(tmp_path, "LOCAL_SLOTS=3\nSAMPLELLM_INSTANCES=auto\n")
    assert [loaded.count(role) for role in loaded.roles] == [1, 1]
    local = application(tmp_path, "LOCAL_SLOTS=3\nSAMPLELLM_INSTANCES=auto\n", **{"echo@test": "smollm2@local"})
    with own_modules():
        local = load(tmp_path)
    assert [local.count(role) for role in local.roles] == [1, 3]


def test_gen_model_is_for_the_roles_that_name_none_and_google_is_gemini(tmp_path: Path) -> None:
    loaded = application(tmp_path, "GEN_MODEL=a@google, b@openai\n")
    assert [role.models for role in loaded.roles] == [("a@gemini", "b@openai"), ("echo@test",)]
    assert loaded.sources["manager models"] == "GEN_MODEL, .env"
    assert loaded.sources["samplellm models"] == "config.py"


def test_roles_that_only_help_are_not_offered_because_gen_model_gives_them_models(tmp_path: Path) -> None:
    offered = ["calculator", "remind", "research", "samplellm", "translation"]
    shutil.copy(ROOT / "config.py", tmp_path)
    shutil.copytree(ROOT / "agents", tmp_path / "agents", ignore=shutil.ignore_patterns("__pycache__"))
    for dotenv in ("", "GEN_MODEL=echo@test\n"):
        (tmp_path / ".env").write_text(dotenv)
        with own_modules():
            loaded = load(tmp_path)
        helper = loaded.role("lang")
        assert helper is not None and bool(helper.models) == bool(dotenv)
        assert sorted(role.name for role in loaded.answering_roles) == offered


AUTO = {'"echo@test"': '"auto"'}
TINY = ("smollm2@local",)


@pytest.mark.parametrize(
    ("dotenv", "models", "why"),
    [
        ("", TINY, "auto: no key is set"),
        ("OPENAI_API_KEY=k\n", ("gpt-5-mini@openai", *TINY), "auto: OPENAI_API_KEY, .env"),
        ("GOOGLE_API_KEY=k\n", ("gemini-flash-latest@gemini", *TINY), "auto: GOOGLE_API_KEY, .env"),
        ("ANTHROPIC_API_KEY=k\n", ("claude-haiku-5-5@anthropic", *TINY), "auto: ANTHROPIC_API_KEY, .env"),
        (
            "GEMINI_API_KEY=k\nOPENAI_API_KEY=k\n",
            ("gpt-5-mini@openai", "gemini-flash-latest@gemini", *TINY),
            "auto: OPENAI_API_KEY, .env; GEMINI_API_KEY, .env",
        ),
        ("OPENAI_API_KEY=k\nGEN_MODEL=a@google,b@openai\n", ("a@gemini", "b@openai"), "auto: GEN_MODEL, .env"),
    ],
)
def test_auto_is_gen_model_else_the_best_model_of_each_key_and_then_the_tiny_one(
    tmp_path: Path, dotenv: str, models: tuple[str, ...], why: str
) -> None:
    loaded = application(tmp_path, dotenv, **AUTO)
    assert (loaded.roles[1].models, loaded.sources["samplellm models"]) == (models, why)
    assert loaded.roles[0].models == (models if "GEN_MODEL" in dotenv else ())


def test_auto_can_stand_among_other_models(tmp_path: Path) -> None:
    loaded = application(
        tmp_path, "OPENAI_API_KEY=k\n", **{'"echo@test"': '"first@ollama", "auto", "gpt-5-mini@openai"'}
    )
    assert loaded.roles[1].models == ("first@ollama", "gpt-5-mini@openai", *TINY)


def test_the_directory_is_the_one_given_else_rolecall_app_else_here(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert application_directory() == tmp_path
    monkeypatch.setenv("ROLECALL_APP", "other")
    assert application_directory() == tmp_path / "other"
    assert application_directory("third") == tmp_path / "third"


# ── what is wrong ───────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("LEASE_SECONDS=abc", "LEASE_SECONDS=abc from .env is invalid: expected a number over 0 and up to 86400"),
        ("LEASE_SECONDS=0", "LEASE_SECONDS=0 from .env is invalid: expected a number over 0 and up to 86400"),
        ("MAX_DELIVERIES=2.5", "MAX_DELIVERIES=2.5 from .env is invalid: expected an integer from 1 to 100"),
        ("REDIS_PORT=70000", "REDIS_PORT=70000 from .env is invalid: expected an integer from 1 to 65535"),
        ("LOCAL_THREADS=0", "LOCAL_THREADS=0 from .env is invalid: expected an integer from 1 to 1024"),
        ("APPENDFSYNC=never", "APPENDFSYNC=never from .env is invalid: expected always or everysec"),
        ("ENVIRONMENT=test", "ENVIRONMENT=test from .env is invalid: expected production or development"),
        ("SAMPLELLM_INSTANCES=-1", "SAMPLELLM_INSTANCES=-1 is invalid: expected an integer from 0 to 1024, or auto"),
        ("SAMPLELLM_INSTANCES=two", "SAMPLELLM_INSTANCES=two is invalid: expected an integer from 0 to 1024, or auto"),
        ("TOTAL_INSTANCES=2", "3 instances are configured, more than TOTAL_INSTANCES=2"),
        ("GEN_MODEL=gpt", "GEN_MODEL=gpt is invalid: expected name@provider, such as smollm2@local"),
        ("KEY_PREFIX=a}b", "KEY_PREFIX=a}b from .env is invalid: expected text such as staging"),
        ("USER_TOKENS_PER_DAY=0", "USER_TOKENS_PER_DAY=0 from .env is invalid: expected an integer of 1 or more"),
        ("COST_PER_DAY=-1", "COST_PER_DAY=-1 from .env is invalid: expected a number over 0"),
        ("EMBEDDING_MODEL=ada", f"EMBEDDING_MODEL=ada from .env is invalid: expected text such as {EXAMPLE}"),
        ("APP_NAME=" + "x" * 101, f"APP_NAME={'x' * 101} from .env is invalid: expected text of up to 100 characters"),
        ("HTTP_HOSTS=https://a.b", "HTTP_HOSTS=https://a.b from .env is invalid: expected text such as " + HOST),
        ("HTTP_HOSTS=a.b:80", "HTTP_HOSTS=a.b:80 from .env is invalid: expected text such as " + HOST),
        ("HTTP_ORIGINS=a.example", "HTTP_ORIGINS=a.example from .env is invalid: expected text such as " + ORIGIN),
        ("HTTP_ORIGINS=http://a/", "HTTP_ORIGINS=http://a/ from .env is invalid: expected text such as " + ORIGIN),
        ("TELEGRAM_DRAFTS=maybe", "TELEGRAM_DRAFTS=maybe from .env is invalid: expected true or false"),
        ("LEASE_SECONDS=0.9", "HEARTBEAT_SECONDS=0.5 must be at most half of LEASE_SECONDS=0.9"),
    ],
)
def test_a_bad_value_is_refused_with_its_name_and_what_is_allowed(tmp_path: Path, line: str, said: str) -> None:
    assert refusal(tmp_path, line + "\n") == said


def test_whatever_the_setting_a_bad_value_is_refused_with_what_its_rules_expect() -> None:
    for name, field in Settings.model_fields.items():
        with pytest.raises(ConfigError, match=f"{name.upper()}=.* is invalid: expected ") as caught:
            Config(roles=(), **{name: object()})
        ruled = any(hasattr(rule, word) for rule in field.metadata for word in ("pattern", "max_length", "ge", "gt"))
        assert not (ruled and str(caught.value).endswith("expected text")), name


def test_type_checkers_without_a_plugin_see_that_a_setting_may_be_left_out() -> None:
    """They take a default only by keyword: see typing.dataclass_transform."""
    tree = ast.parse(inspect.getsource(sys.modules[Settings.__module__]))
    fields = [node.value for node in ast.walk(tree) if isinstance(node, ast.AnnAssign)]
    calls = [call for call in fields if isinstance(call, ast.Call) and ast.unparse(call.func) == "Field"]
    assert len(calls) == len(Settings.model_fields)
    assert not [ast.unparse(call) for call in calls if call.args]


def test_the_pattern_of_a_setting_is_about_its_whole_value() -> None:
    patterns = {
        name: str(rule.pattern)
        for name, field in Settings.model_fields.items()
        for rule in field.metadata
        if getattr(rule, "pattern", None)
    }
    assert len(patterns) > 5
    assert not {name for name, text in patterns.items() if not (text.startswith("^") and text.endswith("$"))}


def test_a_line_of_dotenv_that_cannot_be_read_is_named_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    loaded = application(tmp_path, "SCAN_SECONDS=2\nLEASE_SECONDS: 20\n\n# said\nMAX_DELIVERIES=5\n")
    assert (loaded.settings.scan_seconds, loaded.settings.max_deliveries) == (2, 5)
    assert caplog.messages == [f"{tmp_path}/.env, line 2 is ignored: expected NAME=value"]


def test_a_bad_value_in_config_names_the_file(tmp_path: Path) -> None:
    said = refusal(tmp_path, **{"heartbeat_seconds=0.5": "max_deliveries='many'"})
    assert said == f"{tmp_path}/config.py: MAX_DELIVERIES=many is invalid: expected an integer from 1 to 100"


def test_a_misspelt_setting_is_named_without_its_value(tmp_path: Path) -> None:
    said = refusal(tmp_path, **{"heartbeat_seconds=0.5": "openai_apikey='sk-secret'"})
    assert said.endswith("openai_apikey: there is no such setting; did you mean openai_api_key?")
    assert "sk-secret" not in said


def test_a_key_under_nearly_its_name_is_recognised_in_dotenv_and_other_programs_names_are_not(tmp_path: Path) -> None:
    theirs = "AZURE_OPENAI_API_KEY=1\nSTRIPE_API_KEY=1\nHTTP_KEY=rk_12345678901234567890123\nHTTPS_KEY=1\n"
    loaded = application(tmp_path, f"OPENAI_KEY=sk-1\nTELEGRAM_TOKEN=1:a\n{theirs}")
    assert misspelt(loaded) == {"OPENAI_KEY": "OPENAI_API_KEY", "TELEGRAM_TOKEN": "TELEGRAM_BOT_TOKEN"}


def test_a_secret_of_the_wrong_kind_is_not_shown(tmp_path: Path) -> None:
    said = refusal(tmp_path, **{"heartbeat_seconds=0.5": "openai_api_key=b'sk-\\xff'"})
    assert "OPENAI_API_KEY=(secret)" in said
    assert "sk-" not in said


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("Role(ManagerAgent), ", "*(), ", "no role 'manager'"),
        ("Role(ManagerAgent), ", "Role(ManagerAgent), Role(ManagerAgent), ", "'manager' is configured twice"),
        ("Role(ManagerAgent), ", "Role('manager'), ", "Role('manager') is invalid: expected a subclass of Agent"),
        ("Role(ManagerAgent), ", "ManagerAgent, ", "config.py: roles:"),
        ("Role(ManagerAgent), ", "Role(ManagerAgent, 1.5), ", "MANAGER_INSTANCES=1.5 is invalid: expected an integer"),
        ("config = ", "konfig = ", "must define `config = Config(roles=(…))`"),
        ("config = ", "config = 1 / 0 or ", "cannot be loaded: ZeroDivisionError"),
        ("agents.all", "agents.nothing", "cannot be loaded: ModuleNotFoundError: No module named 'agents.nothing'"),
        ("echo@test", "echo", "config.py, role samplellm: model echo is invalid: expected name@provider"),
    ],
)
def test_a_wrong_config_is_one_line_that_says_what_it_needs(tmp_path: Path, old: str, new: str, said: str) -> None:
    assert said in refusal(tmp_path, **{old: new})


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"roles": (Agent,)}, "roles: input should be a dictionary or an instance of Role"),
        ({"roles": (), "turn_second": 5}, "turn_second: there is no such setting; did you mean turn_seconds?"),
        ({"roles": (), "turn_seconds": 0}, "TURN_SECONDS=0 is invalid: expected a number over 0 and up to 86400"),
        ({"roles": (), "frontends": (5,)}, "frontends: input should be callable"),
        ({"match": 5}, "Role(match=5) is invalid: expected a text such as '/weather'"),
        ({"match": "/x "}, "Role(match='/x ') is invalid: expected a text such as '/weather'"),
        (
            {"match": "/Help me"},
            "Role(match='/Help me') is invalid: /help is a built-in command, so no message would reach the role; "
            "choose another prefix",
        ),
        ({"models": (5,)}, "Role(models=(5,)) is invalid: expected names such as ('smollm2@local',)"),
    ],
)
def test_a_program_is_told_in_one_line_what_its_config_needs(given: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError) as refused:
        Config(**given) if "roles" in given else Role(Agent, **given)
    assert str(refused.value) == said


def test_a_role_may_name_its_only_model_without_a_tuple(tmp_path: Path) -> None:
    assert application(tmp_path, **{'("echo@test",)': '"echo@test"'}).roles[1].models == ("echo@test",)


def test_a_role_name_that_no_stream_can_have_is_refused(tmp_path: Path) -> None:
    agents = AGENTS.replace("class ManagerAgent(Agent):", 'class ManagerAgent(Agent):\n    role = "Man Ager"')
    with pytest.raises(ConfigError, match="role 'Man Ager' is invalid: expected up to 40 characters of a-z 0-9 _ -"):
        load(make_application(tmp_path, agents=agents))


@pytest.mark.parametrize(
    ("handler", "said"),
    [
        ("def handle(self, envelope, ctx): return envelope", "expected an async method handle(envelope, ctx)"),
        ("async def handle(self, envelope, ctx): yield envelope", "expected an async method handle(envelope, ctx)"),
        ("role = 'manager'", "expected an async method handle(envelope, ctx)"),
        ("async def handle(self, envelope): return envelope", "expected handle(self, envelope, ctx): too many"),
        ("@staticmethod\n    async def handle(self, envelope, ctx): ...", "handle(self, envelope, ctx): missing"),
        ("async def handle(self, envelope, ctx): ...\n    role = 5", "role = 5; expected a name such as"),
        (
            "async def handle(self, envelope, ctx): ...\n    languages = {'de': 'Deutsch'}",
            "expected languages = {'de': Language('Deutsch', ",
        ),
        (
            "async def handle(self, envelope, ctx): ...\n    def __init__(self, db): ...",
            "expected no arguments: missing",
        ),
    ],
)
def test_an_agent_that_can_handle_nothing_is_refused_at_the_start(tmp_path: Path, handler: str, said: str) -> None:
    agents = f"from rolecall import Agent\nclass ManagerAgent(Agent):\n    {handler}\nSampleLLMAgent = ManagerAgent\n"
    with pytest.raises(ConfigError) as refused:
        load(make_application(tmp_path, agents=agents))
    assert str(refused.value).startswith("agents.all.ManagerAgent ")
    assert said in str(refused.value)


def test_a_directory_without_config_says_how_to_get_one(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"no config\.py in .*--app DIR.*rolecall new DIR"):
        load(tmp_path)


def test_a_dotenv_that_is_no_text_is_refused(tmp_path: Path) -> None:
    make_application(tmp_path)
    (tmp_path / ".env").write_bytes(b"RETRIES=\xff\xfe")
    with pytest.raises(ConfigError, match=r"\.env is not UTF-8 text"):
        load(tmp_path)


@pytest.mark.parametrize("name", ["config", "agents"])
def test_another_package_of_the_same_name_is_noticed(tmp_path: Path, name: str) -> None:
    other = tmp_path / "other"
    (other / name).mkdir(parents=True)
    (other / name / "__init__.py").touch()
    directory = make_application(tmp_path / "app")
    script = "import sys; sys.path.insert(0, sys.argv[1]); __import__(sys.argv[2])\n"
    script += "from rolecall.config import load; load(sys.argv[3])"
    done = subprocess.run(
        [sys.executable, "-c", script, str(other), name, str(directory)],
        env=clean_environment(),
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    said = done.stderr.splitlines()[-1]
    assert f"'{name}' was imported from {other}/{name}/__init__.py, not from {directory}" in said


# ── the server's address and connections ────────────────────────────────────────────────────────


@pytest.mark.parametrize("url", ["http://user:hunter2@host", "redis://:hunter2@host:port", "hunter2"])
def test_an_address_of_another_kind_is_refused_without_showing_it(url: str) -> None:
    with pytest.raises(ConfigError, match=r"REDIS_URL=\(secret\) is invalid: expected redis://") as caught:
        configured_url(Settings(redis_url=url))
    assert "hunter2" not in str(caught.value)


def test_host_port_user_and_password_make_an_address_whatever_they_contain() -> None:
    settings = Settings(redis_host="::1", redis_port=7000, redis_username="a/b", redis_password="p@ss:/#", redis_db=2)
    assert configured_url(settings) == "redis://a%2Fb:p%40ss%3A%2F%23@[::1]:7000/2"
    assert configured_url(Settings()) is None


async def test_a_ceiling_of_connections_below_what_a_process_needs_is_refused_at_start(tmp_path: Path) -> None:
    settings = Settings(shards=16, redis_max_connections=18)
    assert connections_needed(settings) == 19
    refused = Application(tmp_path, (), settings, {})
    with pytest.raises(ConfigError, match=r"REDIS_MAX_CONNECTIONS=18 is too low.*up to 19 connections"):
        async with open_session(refused, "host:1~aaaaaa", start=True):
            pass
    assert not refused.state_dir.exists()


# ── secrets in files ────────────────────────────────────────────────────────────────────────────


def test_a_secret_may_be_in_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "password").write_text("not for everyone\n")
    monkeypatch.setenv("REDIS_PASSWORD_FILE", str(tmp_path / "password"))
    loaded = application(tmp_path)
    assert loaded.settings.redis_password is not None
    assert loaded.settings.redis_password.get_secret_value() == "not for everyone"
    assert loaded.sources["REDIS_PASSWORD"] == "REDIS_PASSWORD_FILE"
    monkeypatch.setenv("REDIS_PASSWORD", "stronger")
    loaded = application(tmp_path)
    assert loaded.settings.redis_password is not None
    assert loaded.settings.redis_password.get_secret_value() == "stronger"


def test_a_secrets_file_that_is_not_there_or_empty_is_refused_by_name(tmp_path: Path) -> None:
    assert "HTTP_KEY_FILE=/no/such is invalid: No such file" in refusal(tmp_path, "HTTP_KEY_FILE=/no/such\n")
    (tmp_path / "key").write_text("\n")
    assert "the file is empty" in refusal(tmp_path, f"HTTP_KEY_FILE={tmp_path / 'key'}\n")


def test_an_api_key_that_can_be_guessed_is_refused(tmp_path: Path) -> None:
    said = refusal(tmp_path, "HTTP_KEY=short-secret\n")
    assert said.startswith("HTTP_KEY=(secret) from .env") and "22 random characters or more" in said
    assert "short-secret" not in said
