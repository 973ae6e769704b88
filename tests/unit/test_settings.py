"""Settings: what is read, what the old stack's names become, and the one line that a wrong value gives."""

from __future__ import annotations

import base64
import logging
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr

from core.errors import ConfigurationError
from core.settings import (
    Settings,
    embedded_socket,
    environment,
    get_settings,
    load_settings,
    parse_key_ring,
    translate_legacy_names,
    use_settings,
)
from tests.toys import KEY, OTHER_KEY, FixedSettings, fixed_settings, in_force


def made(**values: Any) -> Settings:
    return FixedSettings(**values)


@pytest.mark.parametrize("scheme", ["postgres", "postgresql", "postgresql+psycopg2"])
def test_every_spelling_of_postgres_gets_the_driver(scheme: str) -> None:
    assert made(database_url=f"{scheme}://u:p@h/db").database == "postgresql+psycopg2://u:p@h/db"


def test_without_a_database_there_is_sqlite_in_the_data_directory(tmp_path: Path) -> None:
    assert made(data_dir=tmp_path).database == f"sqlite:///{tmp_path}/mailroom.db"
    assert made(database_url="sqlite:////x/y.db").database == "sqlite:////x/y.db"


def test_without_any_broker_there_is_the_embedded_one(tmp_path: Path) -> None:
    settings = made(data_dir=tmp_path, redis_url="", rabbitmq_url="")
    assert settings.uses_embedded_broker
    assert settings.redis == f"unix://{embedded_socket(tmp_path)}"
    assert settings.rabbitmq is None


def test_rabbitmq_alone_has_no_redis_behind_it() -> None:
    settings = made(rabbitmq_url="amqp://h/")
    assert (settings.rabbitmq, settings.redis, settings.uses_embedded_broker) == ("amqp://h/", None, False)
    assert made(redis_url="rediss://h/1").redis == "rediss://h/1"


def test_a_deep_data_directory_gets_a_short_socket(tmp_path: Path) -> None:
    deep = tmp_path / ("d" * 120)
    assert len(str(embedded_socket(deep))) < 108
    assert embedded_socket(deep) != embedded_socket(tmp_path / ("e" * 120))
    assert embedded_socket(Path("/x")) == Path("/x/valkey.sock")


def test_files_lie_in_the_data_directory_unless_told_otherwise(tmp_path: Path) -> None:
    assert made(data_dir=tmp_path).files == tmp_path / "files"
    assert made(file_root=tmp_path / "f").files == tmp_path / "f"


def test_the_first_key_of_a_ring_is_the_active_one() -> None:
    ring = made(task_signing_key=f"{KEY}, {OTHER_KEY}").signing_keys
    assert list(ring) == ["k1", "k2"]
    assert ring["k1"] == bytes(32)


@pytest.mark.parametrize(
    "text", ["", "nokey", "k1:", "k1:!!!", ":" + "A" * 43 + "=", "k1:" + base64.b64encode(b"short").decode(), f"{KEY},{KEY}", f"{KEY},"]
)
def test_a_key_ring_that_is_none_says_how_to_make_one(text: str) -> None:
    with pytest.raises(ConfigurationError, match=r"^X must be id:base64 pairs .* Make one with: python3 -c"):
        parse_key_ring(text, "X")


@pytest.mark.parametrize("name", ["signing_keys", "credential_keys"])
def test_a_missing_key_is_told_when_it_is_needed(name: str) -> None:
    with pytest.raises(ConfigurationError, match=r"_KEY is not set; it .* Make one with"):
        getattr(made(), name)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("DATABASE_URL", "mysql://canary@h/db"),
        ("RABBITMQ_URL", "http://canary"),
        ("REDIS_URL", "canary"),
        ("WORKER_THREADS", "canary"),
        ("WORKER_THREADS", "0"),
        ("API_PORT", "70000"),
        ("LOG_LEVEL", "canary"),
        ("TASK_TIME_LIMIT", "-1"),
        ("SYSTEM_SMTP_URL", "http://canary"),
        ("SYSTEM_SMTP_URL", "smtp://:canary@h"),
        ("SYSTEM_SMTP_URL", "smtp://canary:canary"),
        ("SYSTEM_SMTP_URL", "smtp://"),
        ("SYSTEM_SMTP_URL", "smtps://canary:0"),
        ("SYSTEM_SMTP_URL", "smtp://h?tls=canary"),
        ("SYSTEM_SMTP_URL", "smtp://h/canary"),
        ("SYSTEM_SMTP_URL", "smtp://h?canary=1"),
        ("SYSTEM_SENDER", "canary"),
        ("LINK_BASE_URL", "canary"),
        ("MAIL_LOCALE", "canary!"),
    ],
)
def test_a_wrong_value_gives_one_line_that_names_the_setting_and_not_the_value(
    name: str, value: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setitem(Settings.model_config, "env_file", None)
    monkeypatch.setenv(name, value)
    with pytest.raises(ConfigurationError) as error:
        load_settings()
    assert str(error.value).startswith(f"{name}: ")
    assert "\n" not in str(error.value)
    assert "canary" not in str(error.value)


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("smtp://h", ("h", 25, "plain", None, None)),
        ("smtp://h:2525?tls=starttls", ("h", 2525, "starttls", None, None)),
        ("smtp+starttls://u%40x.test:p%3A%2F@h", ("h", 587, "starttls", "u@x.test", "p:/")),
        ("smtps://u:p@h", ("h", 465, "tls", "u", "p")),
        ("smtp://u:p@[::1]:26/?tls=implicit", ("::1", 26, "tls", "u", "p")),
        ("smtps://h?tls=none", ("h", 25, "plain", None, None)),
    ],
)
def test_the_systems_mail_server_is_read_from_its_url(url: str, expected: tuple[Any, ...]) -> None:
    server = made(system_smtp_url=url).system_smtp
    assert server is not None
    assert (server.host, server.port, server.security, server.username, server.password) == expected
    assert "password" not in repr(server)


def test_without_a_system_mail_server_there_is_none() -> None:
    assert made(system_smtp_url="", system_sender="", link_base_url="").system_smtp is None
    assert made(system_sender="Acme <a@x.test>", link_base_url="https://x.test/app").system_sender == "Acme <a@x.test>"


def test_a_wrong_key_in_the_environment_gives_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(Settings.model_config, "env_file", None)
    monkeypatch.setenv("TASK_SIGNING_KEY", "canary")
    with pytest.raises(ConfigurationError, match="TASK_SIGNING_KEY") as error:
        load_settings()
    assert "canary" not in str(error.value)


def test_the_environment_is_read_and_overrides_win(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(Settings.model_config, "env_file", None)
    monkeypatch.setenv("WORKER_THREADS", "3")
    monkeypatch.setenv("LOG_LEVEL", "debug")
    monkeypatch.setenv("NOBODY_KNOWS", "this")
    assert (load_settings().worker_threads, load_settings().log_level) == (3, "DEBUG")
    assert load_settings(worker_threads=5).worker_threads == 5


LEGACY: list[tuple[dict[str, str], dict[str, str]]] = [
    ({"CELERYD_CONCURRENCY": "4"}, {"worker_threads": "4"}),
    ({"CELERY_WORKER_CONCURRENCY": "6"}, {"worker_threads": "6"}),
    ({"CELERY_WORKER_CONCURRENCY": "6", "WORKER_THREADS": "2"}, {}),
    ({"CELERY_WORKER_MAX_TASKS_PER_CHILD": "50"}, {"worker_max_tasks_per_child": "50"}),
    ({"TASK_TIMEOUT": "300", "CELERY_TASK_SOFT_TIME_LIMIT": "240"}, {"task_time_limit": "300", "task_soft_time_limit": "240"}),
    ({"CELERY_WORKER_PREFETCH_MULTIPLIER": "4"}, {"claim_ahead": "24"}),
    ({"CELERY_WORKER_PREFETCH_MULTIPLIER": "1", "WORKER_THREADS": "2"}, {"claim_ahead": "0"}),
    ({"CELERY_WORKER_PREFETCH_MULTIPLIER": "3", "CELERYD_CONCURRENCY": "5"}, {"worker_threads": "5", "claim_ahead": "10"}),
    ({"CELERY_WORKER_PREFETCH_MULTIPLIER": "many"}, {}),
    ({"CELERY_BROKER_URL": "amqps://h/"}, {"rabbitmq_url": "amqps://h/"}),
    ({"CELERY_BROKER_URL": "redis://h/2"}, {"redis_url": "redis://h/2"}),
    ({"CELERY_BROKER_URL": "redis://h/2", "REDIS_URL": "redis://other/0"}, {}),
    ({"REDIS_HOST": "h"}, {"redis_url": "redis://h:6379/0"}),
    ({"REDIS_HOST": "h", "REDIS_PORT": "7", "REDIS_PASSWORD": "p@:/", "REDIS_DB": "3"}, {"redis_url": "redis://:p%40%3A%2F@h:7/3"}),
    ({"REDIS_HOST": "h", "REDIS_DB": "3", "REDIS_BROKER_DB": "4"}, {"redis_url": "redis://h:6379/4"}),
    ({"REDIS_HOST": "h", "REDIS_USE_SSL": "true"}, {"redis_url": "rediss://h:6379/0"}),
    ({"REDIS_HOST": "h", "REDIS_USE_SSL": "1", "REDIS_SSL_VERIFY_CERT": "no"}, {"redis_url": "rediss://h:6379/0?ssl_cert_reqs=none"}),
    (
        {"REDIS_HOST": "h", "REDIS_USE_SSL": "yes", "REDIS_SSL_CERT_REQS": "Optional"},
        {"redis_url": "rediss://h:6379/0?ssl_cert_reqs=optional"},
    ),
    ({"SOMETHING_ELSE": "1", "CELERYD_CONCURRENCY": ""}, {}),
]


@pytest.mark.parametrize(("environ", "expected"), LEGACY)
def test_the_old_stacks_names_are_read_as_fallbacks(environ: dict[str, str], expected: dict[str, str]) -> None:
    assert translate_legacy_names(environ) == expected


def test_each_old_name_is_logged_once_with_its_successor_and_without_its_value(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        translate_legacy_names({"REDIS_HOST": "h", "REDIS_PASSWORD": "canary", "TASK_TIMEOUT": "300"})
    told = [(line.old, line.successor) for line in caplog.records if line.message == "setting_renamed"]  # type: ignore[attr-defined]
    assert sorted(told) == [("REDIS_HOST", "REDIS_URL"), ("TASK_TIMEOUT", "TASK_TIME_LIMIT")]
    assert "canary" not in caplog.text


def test_what_is_in_force_can_be_replaced(tmp_path: Path) -> None:
    settings = fixed_settings(tmp_path, database_url=SecretStr(f"sqlite:///{tmp_path}/x.db"))
    with in_force(settings):
        assert get_settings() is settings
        other = fixed_settings(tmp_path, worker_threads=1)
        use_settings(other)
        assert get_settings() is other
        use_settings(settings)


def test_secrets_do_not_show(tmp_path: Path) -> None:
    shown = repr(made(database_url="postgres://u:canary@h/db", redis_url="redis://:canary@h/0", task_signing_key=KEY))
    assert "canary" not in shown
    assert "AAAA" not in shown


def test_a_child_gets_this_environment_with_changes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HERE", "1")
    child = environment(MORE="2")
    assert (child["HERE"], child["MORE"]) == ("1", "2")
