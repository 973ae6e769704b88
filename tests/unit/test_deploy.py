"""The deployment files, as far as they can be checked without an engine: what they start exists, what they set is a setting."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml

from cli.main import app
from core.settings import Settings

ROOT = Path(__file__).resolve().parents[2]
COMPOSE: dict[str, Any] = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
OURS = {name: service for name, service in COMPOSE["services"].items() if service.get("image") == "mailroom"}
DOCKERFILE = (ROOT / "deploy" / "Dockerfile").read_text()


def test_the_stack_has_every_process_and_server() -> None:
    assert set(OURS) == {"migrate", "api", "worker", "scheduler"}
    assert set(COMPOSE["services"]) - set(OURS) == {"postgres", "rabbitmq", "redis"}


@pytest.mark.parametrize("name", OURS)
def test_a_service_runs_a_command_that_exists(name: str) -> None:
    group: Any = typer.main.get_command(app)
    for word in OURS[name]["command"]:
        assert word in group.commands
        group = group.commands[word]


@pytest.mark.parametrize("name", OURS)
def test_a_service_sets_settings_that_exist(name: str) -> None:
    assert {setting.lower() for setting in OURS[name]["environment"]} <= set(Settings.model_fields)


def test_required_keys_have_no_default() -> None:
    for setting in ("CREDENTIAL_ENCRYPTION_KEY", "TASK_SIGNING_KEY"):
        assert OURS["worker"]["environment"][setting].startswith(f"${{{setting}:?")


def test_everything_waits_for_what_it_needs_and_everything_it_waits_for_says_when_it_is_ready() -> None:
    for service in COMPOSE["services"].values():
        for needed, condition in service.get("depends_on", {}).items():
            if condition["condition"] == "service_healthy":
                assert "healthcheck" in COMPOSE["services"][needed]


def test_a_worker_is_given_the_time_to_stop_that_it_takes() -> None:
    assert int(OURS["worker"]["stop_grace_period"].removesuffix("s")) > Settings.model_fields["stop_grace"].default


def test_nothing_listens_beyond_this_machine() -> None:
    published = [port for service in COMPOSE["services"].values() for port in service.get("ports", [])]
    assert published
    assert all(port.startswith("127.0.0.1:") for port in published)


def test_the_image_copies_files_that_exist_and_starts_a_module_that_exists() -> None:
    for line in re.findall(r"^COPY (.+)$", DOCKERFILE, re.MULTILINE):
        for source in [word for word in shlex.split(line) if not word.startswith("--")][:-1]:
            assert (ROOT / source).exists()
    assert '"-m", "cli.main"' in DOCKERFILE
    assert "\nUSER mailroom\n" in DOCKERFILE


def test_the_database_role_is_no_superuser() -> None:
    script = (ROOT / "deploy" / "postgres-init.sh").read_text()
    assert "NOSUPERUSER NOBYPASSRLS" in script
