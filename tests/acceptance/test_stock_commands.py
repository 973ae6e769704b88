"""dramatiq's and periodiq's own commands, as their users know them, work with `actors` from the repository's root."""

from __future__ import annotations

import signal
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from tests.acceptance.installation import Installation, eventually, gone, installed, new_virtual_host
from tests.servers.postgres import Postgres
from tests.servers.rabbitmq import RabbitMq
from tests.servers.redis import Redis
from tests.servers.smtp import SmtpSink

pytestmark = pytest.mark.acceptance
PROGRAMS = Path(sys.executable).parent


@pytest.fixture(params=["rabbitmq", "redis"])
def installation(
    request: pytest.FixtureRequest, tmp_path: Path, postgres: Postgres, rabbitmq: RabbitMq, redis_server: Redis
) -> Iterator[Installation]:
    """On one broker alone."""
    if request.param == "rabbitmq":
        urls = {"RABBITMQ_URL": new_virtual_host(rabbitmq, "stock")}
    else:
        urls = {"REDIS_URL": redis_server.url.removesuffix("/0") + "/9"}
    with installed(tmp_path, postgres, f"stock_{request.param}", **urls) as made:
        yield made


def test_dramatiq_s_own_command_executes_runs(installation: Installation, smtp_sink: SmtpSink) -> None:
    worker = installation.start_command([str(PROGRAMS / "dramatiq"), "actors", "-p", "1", "-t", "4"], name="dramatiq")
    installation.start_api()
    acme = installation.new_tenant("acme")
    client_id = acme.new_client(email="ann@acme.example", smtp_port=smtp_sink.port)
    run_id = acme.enqueue("/api/email/send", {"email_client_id": client_id, "to": ["bob@globex.example"], "subject": "Hello"})
    run = acme.ended(run_id)
    assert (run["state"], run["result"]["recipients_sent"]) == ("SUCCESS", 1)
    assert len(smtp_sink.received) == 1
    assert [attempt["worker"] for attempt in run["attempts"]] != [None]
    tree = worker.tree()
    worker.send(signal.SIGTERM)
    assert worker.wait(60) == 0
    assert gone(tree, 2)
    assert installation.query("SELECT id FROM workers") == []


@pytest.fixture
def scheduled(tmp_path: Path, postgres: Postgres, redis_server: Redis) -> Iterator[Installation]:
    with ExitStack() as stack:
        url = redis_server.url.removesuffix("/0") + "/10"
        yield stack.enter_context(installed(tmp_path, postgres, "scheduled", REDIS_URL=url))


def test_any_number_of_schedulers_make_a_tick_one_run(scheduled: Installation) -> None:
    """Two of Mailroom's and periodiq's own, over a minute's boundary; and a tick that all of Mailroom's missed is made up for once."""
    own = scheduled.start("scheduler")
    own.says("scheduler_started")
    eventually(lambda: scheduled.query("SELECT 1 FROM schedules WHERE task = 'periodic_sync'"), "the schedules are declared")
    own.send(signal.SIGTERM)
    assert own.wait(60) == 0
    scheduled.query("UPDATE schedules SET checked_until = checked_until - interval '11 minutes' WHERE task = 'periodic_sync'")
    before = datetime.now(UTC)

    words = [sys.executable, "-m", "tests.acceptance.ticking"]
    programs = [
        scheduled.start("scheduler"),
        scheduled.start_command(words, name="ticking"),
        scheduled.start_command(words, name="ticking"),
    ]
    for program in programs:
        program.says("scheduler_started")
    programs.append(scheduled.start_command([str(PROGRAMS / "periodiq"), "actors", "tests.acceptance.ticking"], name="periodiq"))
    eventually(lambda: runs_of(scheduled, "periodic_sync"), "the missed tick")
    boundary = (before + timedelta(minutes=1)).replace(second=0, microsecond=0)
    eventually(lambda: datetime.now(UTC) > boundary + timedelta(seconds=3) and runs_of(scheduled, "every_minute"), "the next tick", 80)

    for task in ("every_minute", "periodic_sync"):
        ticks = [row[0] for row in scheduled.query("SELECT minute FROM schedule_ticks WHERE task = %s", task)]
        assert runs_of(scheduled, task) == len(ticks) == len(set(ticks))
    assert (boundary,) in scheduled.query("SELECT minute FROM schedule_ticks WHERE task = 'every_minute'")
    for program in programs:
        assert program.running
        program.send(signal.SIGTERM)
    assert [program.wait(60) for program in programs[:3]] == [0, 0, 0]
    programs[3].wait(60)


def runs_of(installation: Installation, task: str) -> int:
    return int(installation.query("SELECT count(*) FROM task_runs WHERE task = %s", task)[0][0])
