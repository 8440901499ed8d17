"""`rolecall models list`: every provider that is set up is asked, and what cannot be asked is one line."""

from __future__ import annotations

from pathlib import Path

from tests.applications import make_application, run_rolecall
from tests.contract.model_lists import answering, openai_list

OLLAMA = {"/api/tags": {"models": [{"model": "qwen3:8b", "name": "qwen3:8b"}]}}


def test_every_provider_that_is_set_up_is_asked(tmp_path: Path) -> None:
    directory = make_application(tmp_path)
    with answering({**openai_list("b", "a"), **OLLAMA}) as url:
        environment = {"OPENAI_BASE_URL": f"{url}/v1", "OLLAMA_URL": url}
        done = run_rolecall("models", "list", "--app", directory, environment=environment)
    assert done.returncode == 0
    lines = done.stdout.splitlines()
    assert lines[:3] == ["a@openai", "b@openai", "qwen3:8b@ollama"]
    assert lines[3].startswith("smollm2@local  ")
    assert done.stderr == (
        "anthropic: not asked, for ANTHROPIC_API_KEY or ANTHROPIC_BASE_URL is not set\n"
        "gemini: not asked, for GEMINI_API_KEY, GOOGLE_API_KEY or GEMINI_BASE_URL is not set\n"
    )


def test_one_that_is_away_does_not_hide_the_others(tmp_path: Path) -> None:
    directory = make_application(tmp_path, dotenv="OLLAMA_URL=http://127.0.0.1:1\n")
    with answering(openai_list("a")) as url:
        environment = {"OPENAI_BASE_URL": f"{url}/v1"}
        done = run_rolecall("models", "list", "--app", directory, environment=environment)
    assert (done.stdout.splitlines()[0], done.returncode) == ("a@openai", 0)
    assert "ollama: no connection to 127.0.0.1" in done.stderr
    assert "Traceback" not in done.stderr


def test_what_runs_on_this_machine_is_listed_with_its_weights(tmp_path: Path) -> None:
    directory, home = make_application(tmp_path / "app"), tmp_path / "home"
    listed = run_rolecall("models", "list", "local", "--app", directory, environment={"HOME": str(home)})
    smollm2, better = listed.stdout.splitlines()
    assert smollm2.split(maxsplit=1) == ["smollm2@local", "92 MB are fetched when it is first used"]
    assert better.split(maxsplit=1) == ["qwen2.5-coder-1.5b@local", "1117 MB are fetched when it is first used"]
    assert listed.stderr == ""
    weights = home / ".cache/rolecall/models/SmolLM2-135M-Instruct.Q4_1.gguf"
    weights.parent.mkdir(parents=True)
    weights.touch()
    listed = run_rolecall("models", "list", "local", "--app", directory, environment={"HOME": str(home)})
    assert listed.stdout.splitlines()[0].split(maxsplit=1) == ["smollm2@local", "its weights are here"]
    assert listed.returncode == 0


def test_a_provider_that_is_named_and_cannot_be_asked_fails(tmp_path: Path) -> None:
    directory = make_application(tmp_path)
    done = run_rolecall("models", "list", "openai", "--app", directory)
    assert (done.stdout, done.returncode) == ("", 1)
    assert done.stderr.startswith("openai needs OPENAI_API_KEY: set it in the environment or in .env")
    with answering({"/v1/models": {"error": {"message": "wrong sk-verysecret"}}}, status=401) as url:
        environment = {"OPENAI_BASE_URL": f"{url}/v1", "OPENAI_API_KEY": "sk-verysecret"}
        done = run_rolecall("models", "list", "@openai", "--app", directory, environment=environment)
    assert (done.stdout, done.returncode) == ("", 1)
    assert done.stderr == "openai: 127.0.0.1 refuses the key (401); check the key set for it\n"


def test_an_unknown_provider_is_refused_with_those_there_are(tmp_path: Path) -> None:
    done = run_rolecall("models", "list", "nobody", "--app", make_application(tmp_path))
    assert (done.stdout, done.returncode) == ("", 2)
    assert done.stderr == "rolecall: 'nobody': the provider is one of openai, anthropic, gemini, ollama, local\n"


def test_google_is_another_name_of_gemini(tmp_path: Path) -> None:
    done = run_rolecall("models", "list", "google", "--app", make_application(tmp_path))
    assert (done.stdout, done.returncode) == ("", 1)
    assert done.stderr.startswith("gemini needs GEMINI_API_KEY or GOOGLE_API_KEY")


def test_check_says_where_to_look_for_the_name_of_a_model(tmp_path: Path) -> None:
    directory = make_application(tmp_path)
    with answering({}) as url:
        environment = {"OPENAI_BASE_URL": f"{url}/v1", "GEN_MODEL": "gpt-55@openai"}
        (directory / "config.py").write_text(
            (directory / "config.py").read_text().replace(', models=("echo@test",)', "")
        )
        done = run_rolecall("check", "--app", directory, environment=environment)
    assert done.returncode == 1
    assert "choose one of those that `rolecall models list openai` shows" in done.stdout
