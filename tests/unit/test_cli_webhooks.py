"""The commands about webhooks, and what `schedule list` says."""

from __future__ import annotations

import json

from periodiq import cron

from brokers.queues import Queue
from core.clock import now
from runs.task import task
from scheduler.loop import Scheduler
from storage.repositories.schedules import Schedules
from tests.unit.api_world import World, world
from tests.unit.test_cli_control import Invoke, invoke, rows

__all__ = ["invoke", "world"]


def test_webhooks_are_listed_tested_and_told_again(world: World, invoke: Invoke) -> None:
    acme = ("--tenant", "acme", "webhook")
    assert "no webhooks" in invoke(*acme, "list").stderr
    made = world.post("/api/webhooks", json={"url": "https://hooks.example/", "events": ["task.failed"]}).json()
    assert rows(invoke(*acme, "list"))[0] == [made["id"], "https://hooks.example/", "on", "0", "task.failed"]
    assert json.loads(invoke(*acme, "list", "--json").stdout)["id"] == made["id"]
    assert "told nothing" in invoke(*acme, "deliveries", made["id"]).stderr
    delivery_id = invoke(*acme, "test", made["id"]).stdout.strip()
    assert rows(invoke(*acme, "deliveries", made["id"]))[0][:4] == [delivery_id, "webhook.test", "pending", "0"]
    assert json.loads(invoke(*acme, "deliveries", made["id"], "--json").stdout)["id"] == delivery_id
    assert invoke(*acme, "redeliver", delivery_id).exit_code == 1  # it is still being told
    with world.system() as session:
        session.connection().exec_driver_sql("UPDATE webhook_deliveries SET status = 'failed'")
        session.connection().exec_driver_sql("UPDATE webhooks SET is_active = 0, disabled_reason = 'gone'")
    assert "off: gone" in invoke(*acme, "list").stdout
    world.call("PATCH", f"/api/webhooks/{made['id']}", json={"isActive": True})
    assert "told again" in invoke(*acme, "redeliver", delivery_id).stderr
    assert invoke("--tenant", "globex", "webhook", "deliveries", made["id"]).exit_code in {1, 3}


def test_schedules_are_listed_with_their_next_and_last_times(world: World, invoke: Invoke) -> None:
    def tick() -> None: ...

    task(queue=Queue.PERIODIC, periodic=cron("@hourly"), timezone="Asia/Tokyo", overlap="skip")(tick)
    Scheduler(world.broker, world.engine).declare()
    run_id = invoke("schedule", "run", "tick").stdout.strip()
    with world.system() as session:
        minute = now()
        Schedules(session).tick("tick", minute, run_id)
        Schedules(session).skip_tick("tick", minute, run_id)
    (row,) = rows(invoke("schedule", "list"))
    assert row[:3] == ["tick", "@hourly", "Asia/Tokyo"]
    assert row[3] == "in"
    assert run_id in row
    assert row[-4:] == ["pending", "(skipped)", "once", "skip"]
    invoke("schedule", "pause", "tick")
    assert rows(invoke("schedule", "list"))[0][3] == "paused"
