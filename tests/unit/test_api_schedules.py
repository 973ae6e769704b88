"""The dashboard's page of schedules."""

from __future__ import annotations

import pytest
from periodiq import cron

from api.dashboard import words
from brokers.queues import Queue
from core.clock import now
from runs.task import task
from scheduler.loop import Scheduler
from storage.repositories.schedules import Schedules
from tests.unit.api_world import World, world
from tests.unit.test_api_dashboard import form, log_in, page, token_in

__all__ = ["world"]


def test_schedules_are_shown_to_all_and_turned_by_admins(world: World) -> None:
    def tick() -> None: ...

    task(queue=Queue.PERIODIC, periodic=cron("*/5 * * * *"), timezone="Europe/Berlin", jitter=90, overlap="skip")(tick)
    log_in(world, world.admin_key)
    assert "No schedules yet." in page(world, "/schedules").text
    Scheduler(world.broker, world.engine).declare()
    shown = page(world, "/schedules").text
    for expected in ("every 5 minutes", "Europe/Berlin", "never", "up to 1 min 30 s later", "not while its run goes on"):
        assert expected in shown, expected
    token = token_in(page(world, "/schedules"))
    started = form(world, "/schedules/run", csrf_token=token, schedule="tick")
    assert page(world, started.headers["location"]).status_code == 200
    run_id = started.headers["location"].rpartition("/")[2]
    assert form(world, "/schedules/pause", csrf_token=token, schedule="tick").headers["location"] == "/schedules"
    with world.system() as session:
        minute = now()
        Schedules(session).tick("tick", minute, run_id)
        Schedules(session).skip_tick("tick", minute, run_id)
    shown = page(world, "/schedules").text
    assert "Paused" in shown
    assert f'href="/runs/{run_id}"' in shown
    assert "skipped: that run was still going" in shown
    form(world, "/schedules/resume", csrf_token=token, schedule="tick")
    assert "Paused" not in page(world, "/schedules").text
    assert form(world, "/schedules/pause", csrf_token=token, schedule="nobody").status_code == 404
    world.http.cookies.clear()
    log_in(world)
    shown = page(world, "/schedules").text
    assert "every 5 minutes" in shown
    assert [word for word in ("Run now", run_id, "pause-schedule") if word in shown] == []
    assert form(world, "/schedules/run", csrf_token=token_in(page(world, "/schedules")), schedule="tick").status_code == 403


@pytest.mark.parametrize(
    ("expression", "expected"),
    [
        ("* * * * *", "every minute"),
        ("*/5 * * * *", "every 5 minutes"),
        ("7 * * * *", "hourly at :07"),
        ("5 2 * * *", "daily at 02:05"),
        ("@midnight", "daily"),
        ("@hourly", "hourly"),
        ("0 2 * * mon", ""),
        ("0 1-5 * * *", ""),
        ("1,2 * * * *", ""),
    ],
)
def test_plain_expressions_are_told_in_words(expression: str, expected: str) -> None:
    assert words.cron_words(expression) == expected
