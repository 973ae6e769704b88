"""docs/adding-a-task.md, followed to the letter in a copy of the house: its file, its test, its call."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import httpx
import pytest

from core.settings import ROOT
from tests.acceptance.installation import Installation, Program, eventually, installed
from tests.servers.postgres import Postgres
from tests.servers.redis import Redis

pytestmark = [pytest.mark.acceptance, pytest.mark.timeout(180)]
PAGE = (ROOT / "docs" / "adding-a-task.md").read_text()
HOUSE = ["core", "mail", "files", "storage", "brokers", "runs", "scheduler", "actors", "api", "cli", "demo", "tests"]


def test_the_page_adds_a_task(tmp_path: Path, postgres: Postgres, redis_server: Redis) -> None:
    house = tmp_path / "house"
    for name in HOUSE:
        shutil.copytree(ROOT / name, house / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", house)
    written = dict(re.findall(r"^`([\w/]+\.py)`:\n\n```python\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL))
    for path, text in written.items():
        assert not (house / path).exists()
        (house / path).write_text(text)
    assert sorted(path.partition("/")[0] for path in written) == ["actors", "tests"]

    with installed(tmp_path, postgres, "adding", REDIS_URL=redis_server.url.removesuffix("/0") + "/12") as installation:
        own = {**installation.environment, "PYTHONPATH": str(house), "DATA_DIR": str(tmp_path / "data")}
        words = re.findall(r"^python (-m pytest \S+)", PAGE, re.MULTILINE)[0].split()
        tested = subprocess.run(
            [sys.executable, *words, "-q", "-p", "no:cacheprovider"], cwd=house, env=own, capture_output=True, text=True, check=False
        )
        assert tested.returncode == 0, tested.stdout + tested.stderr
        assert "4 passed" in tested.stdout
        for part in ("api", "worker"):
            log = tmp_path / f"house-{part}.log"
            installation.programs.append(Program([sys.executable, "-m", "cli.main", part], log=log, env=own, cwd=house))
        _call(installation)


def _call(installation: Installation) -> None:
    acme = installation.new_tenant("acme")

    def answers() -> bool:
        try:
            return acme.http.get("/health/ready").status_code == 200
        except httpx.HTTPError:
            return False

    eventually(answers, "the API answers", 40)
    kinds = {each["task"]: each for each in acme.http.get("/api/task-types").json()["items"]}
    assert kinds["report_mailbox"]["description"] == "Count the messages of an account."
    client_id = acme.new_client(email="ann@acme.example", imap_port=1)
    (command,) = re.findall(r"^curl .*?\n```", PAGE, re.MULTILINE | re.DOTALL)
    env = {**installation.environment, "MAILROOM_URL": installation.url, "MAILROOM_KEY": acme.key, "CLIENT_ID": client_id}
    called = subprocess.run(["/bin/sh", "-c", command.removesuffix("\n```")], env=env, capture_output=True, text=True, check=True)
    run = acme.ended(json.loads(called.stdout)["taskId"])
    assert (run["state"], run["result"]) == ("SUCCESS", {"status": "success", "message_count": 0})
