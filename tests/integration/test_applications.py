"""Two applications on one server: kept apart by a prefix, else the second is refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from rolecall.errors import ConfigError
from rolecall.redis import keys
from rolecall.redis.server import RedisServer
from tests.applications import make_application, run_rolecall, running
from tests.valkey import ValkeyProcess


@pytest.fixture
def valkey(tmp_path: Path) -> ValkeyProcess:
    directory = tmp_path / "v"
    directory.mkdir()
    return ValkeyProcess(directory)


def test_a_second_application_is_refused_in_one_line_and_served_under_a_prefix(
    tmp_path: Path, valkey: ValkeyProcess
) -> None:
    valkey.start()
    first, second = (make_application(tmp_path / name) for name in ("production", "staging"))
    given = {"REDIS_URL": valkey.url}
    try:
        with running(first, environment=given):
            refused = run_rolecall("worker", "--app", second, environment=given)
            assert refused.returncode != 0 and "Traceback" not in refused.stderr
            said = refused.stderr.splitlines()[-1]
            assert "already serves the application 'production', and this one is 'staging'" in said
            assert "KEY_PREFIX" in said and "APP_NAME=production" in said
            checked = run_rolecall("check", "--app", second, environment=given)
            assert "the server serves 'production', this application is 'staging'" in checked.stdout
            asked = run_rolecall("ask", "--app", second, "hello", environment={**given, "KEY_PREFIX": "staging"})
            assert "nothing is running" in asked.stderr, asked.stderr
            with running(second, environment={**given, "KEY_PREFIX": "staging"}):
                answer = run_rolecall("ask", "--app", second, "hello", environment={**given, "KEY_PREFIX": "staging"})
                assert answer.returncode == 0, answer.stderr
            joined = run_rolecall("check", "--app", second, environment={**given, "APP_NAME": "production"})
            assert "this application is 'production'" in joined.stdout
    finally:
        valkey.kill()


async def test_data_without_a_prefix_goes_on_and_a_prefix_touches_none_of_it(
    server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = {name: value for name, value in vars(keys).items() if name.isupper() and isinstance(value, str)}
    assert names["META"] == "{bus:0}:meta" and keys.ShardKeys(3).log == "{bus:3}:l"
    for name, value in names.items():
        monkeypatch.setattr(keys, name, value)
    monkeypatch.setattr(keys, "_prefix", None)
    keys.use("staging")
    try:
        with pytest.raises(ConfigError, match="this process works with KEY_PREFIX=staging already"):
            keys.use("test")
        assert (keys.META, keys.worker("p")) == ("{staging.bus:0}:meta", "{staging.bus:0}:w:p")
        assert keys.ShardKeys(3).log == "{staging.bus:3}:l"
        assert names["GROUP"] == keys.GROUP
    finally:
        monkeypatch.undo()
    assert keys.META == "{bus:0}:meta"
    monkeypatch.setattr(keys, "_prefix", "")
    with pytest.raises(ConfigError, match="KEY_PREFIX=staging cannot be used: this process works without a prefix"):
        keys.use("staging")
