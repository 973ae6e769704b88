"""The commands that look at runs and turn things: data on stdout, messages on stderr, exit codes, here and over HTTP."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
import structlog
from pydantic import SecretStr
from typer.testing import CliRunner, Result

from api.auth import OPERATOR
from cli import client
from cli.main import app, exit_code
from cli.printing import age, span
from core.clock import now
from core.errors import MailroomError, NotFoundError, UnavailableError
from storage.engine import make_engine
from storage.migrations import upgrade
from storage.models import WorkerProcess
from tests.toys import fixed_settings, in_force
from tests.unit.api_world import World, world

__all__ = ["world"]
Invoke = Callable[..., Result]
STARTED: dict[str, Any] = {"state": "STARTED", "waiting_for": None, "publish_at": None, "worker_id": "w", "started_at": now()}
DEAD: dict[str, Any] = {"state": "FAILURE", "waiting_for": None, "publish_at": None, "reason": "crashed", "dead_lettered_at": now()}


@pytest.fixture
def invoke(world: World, monkeypatch: pytest.MonkeyPatch) -> Invoke:
    """One command line, in a process that has the world's database."""

    @contextmanager
    def application() -> Iterator[Any]:
        async def as_operator(scope: Any, receive: Any, send: Any) -> None:
            scope[OPERATOR] = True
            await world.app(scope, receive, send)

        yield as_operator

    monkeypatch.setattr(client, "_application", application)
    structlog.configure(logger_factory=structlog.PrintLoggerFactory(io.StringIO()))  # as the real one: not on stdout

    def run(*words: str) -> Result:
        result = CliRunner().invoke(app, list(words))
        assert result.exception is None or isinstance(result.exception, MailroomError | SystemExit), result.exception
        return result

    return run


def rows(result: Result) -> list[list[str]]:
    """The lines of a table below its head, as words."""
    return [line.split() for line in result.stdout.splitlines()[1:]]


def objects(result: Result) -> list[Any]:
    return [json.loads(line) for line in result.stdout.splitlines()]


def test_runs_are_listed_by_what_they_are_doing(world: World, invoke: Invoke) -> None:
    due, running, failed, revoked = (world.add() for _ in range(4))
    later = invoke("--tenant", "acme", "task", "send", "add", "x=1", "--countdown", "60").stdout.strip()
    world.set_run(running, **STARTED, ending="revoke")
    world.set_run(failed, **DEAD, error="Lost its worker.")
    world.set_run(revoked, state="REVOKED", waiting_for=None, publish_at=None, reason="expired")
    expected = {"reserved": due, "active": running, "scheduled": later, "failed": failed, "revoked": revoked}
    for name, run_id in expected.items():
        assert [each["taskId"] for each in objects(invoke("tasks", name, "--json"))] == [run_id], name
        assert [line[0] for line in rows(invoke("tasks", name))] == [run_id], name
    assert "revocation requested" in invoke("tasks", "active").stdout
    assert "crashed Lost its worker." in invoke("tasks", "failed").stdout
    assert "due in" in invoke("tasks", "scheduled").stdout
    nothing = invoke("tasks", "active", "--queue", "sync")
    assert (nothing.stdout, nothing.stderr.startswith("None.")) == ("", True)
    assert len(rows(invoke("tasks", "registered"))) == 8


def test_more_than_a_page_is_fetched_page_after_page(world: World, invoke: Invoke, monkeypatch: pytest.MonkeyPatch) -> None:
    made = [world.add(x=number) for number in range(5)]
    asked: list[Any] = []
    real = client.call

    def small(context: Any, method: str, path: str, **options: Any) -> Any:
        options["params"]["limit"] = 2
        asked.append(options["params"])
        return real(context, method, path, **options)

    monkeypatch.setattr(client, "call", small)
    assert [each["taskId"] for each in objects(invoke("tasks", "reserved", "--json"))] == made[::-1]
    assert len(asked) == 3


def test_one_run_is_sent_shown_revoked_and_replayed(world: World, invoke: Invoke) -> None:
    sent = invoke("--tenant", "acme", "task", "send", "add", "x=2", "y=3", "--priority", "high")
    run_id = sent.stdout.strip()
    assert world.get(f"/api/tasks/{run_id}").json()["state"] == "PENDING"
    assert "waitingFor" in invoke("task", "status", run_id).stdout
    assert objects(invoke("task:status", run_id, "--json"))[0]["taskId"] == run_id
    assert exit_code(invoke("task", "result", run_id).exception) == 1  # type: ignore[arg-type]
    assert invoke("task", "revoke", run_id).stdout == "REVOKED\n"
    assert invoke("task", "replay", run_id).stdout == "PENDING\n"
    world.set_run(run_id, **STARTED)
    marked = invoke("task:revoke", run_id)
    assert (marked.stdout, "at its next checkpoint" in marked.stderr) == ("STARTED\n", True)
    assert "at its next checkpoint" in invoke("task", "status", run_id).stdout
    assert "within seconds" in invoke("task", "revoke", run_id, "--terminate").stderr
    world.set_run(run_id, state="SUCCESS", result={"sum": 5})
    assert objects(invoke("task", "result", run_id)) == [{"sum": 5}]


@pytest.mark.parametrize(
    ("words", "code"),
    [
        (["task", "status", "nonsense"], 3),
        (["task", "send", "nope"], 3),
        (["task", "send", "add", "x=one"], 1),
        (["queue", "pause", "nope"], 3),
        (["queue", "status", "nope"], 3),
        (["schedule", "run", "add"], 3),
        (["--tenant", "acme", "queue", "pause", "default"], 1),
    ],
)
def test_what_cannot_be_done_is_one_sentence_and_an_exit_code(invoke: Invoke, words: list[str], code: int) -> None:
    result = invoke(*words)
    assert isinstance(result.exception, MailroomError)
    assert exit_code(result.exception) == code, result.exception
    assert result.stdout == ""


@pytest.mark.parametrize(
    "words", [["task", "send", "add", "x"], ["dead-letters", "purge"], ["dead-letters", "replay"], ["--url", "http://x", "status"]]
)
def test_what_is_wrongly_asked_is_a_usage_error(invoke: Invoke, words: list[str]) -> None:
    assert invoke(*words).exit_code == 2


def test_nothing_is_purged_without_a_yes(world: World, invoke: Invoke) -> None:
    waiting, letter = world.add(), world.add()
    world.set_run(letter, **DEAD)
    for words in (["queue", "purge", "default"], ["dead-letters", "purge", "--all"], ["tasks", "revoke", "--task", "add"]):
        refused = invoke(*words)
        assert (refused.exit_code, "--yes" in refused.stderr, refused.stdout) == (1, True, "")
    assert world.get(f"/api/tasks/{waiting}").json()["state"] == "PENDING"
    assert invoke("queue", "purge", "default", "--yes").stdout == "revoked  1\n"
    assert world.get(f"/api/tasks/{waiting}").json()["state"] == "REVOKED"
    again = invoke("queue", "purge", "default", "--yes")
    assert (again.exit_code, again.stdout, "nothing to do" in again.stderr) == (0, "", True)
    assert objects(invoke("dead-letters", "list", "--json"))[0]["taskId"] == letter
    assert "crashed" in invoke("dead-letters", "list").stdout
    assert invoke("dead-letters", "show", letter).exit_code == 0
    assert invoke("dead-letters", "purge", letter, "-y").stdout == "purged  1\n"
    assert "no dead letters" in invoke("dead-letters", "list").stderr
    world.set_run(letter, dead_lettered_at=now())
    assert invoke("dead-letters", "replay", "--reason", "crashed", "-y").stdout == "replayed  1\n"


def test_with_a_yes_a_count_that_moves_is_followed(world: World, invoke: Invoke, monkeypatch: pytest.MonkeyPatch) -> None:
    from runs import sweep

    world.add()
    real = sweep._check
    seen: list[int] = []

    def moving(count: int, expect: int) -> None:
        if not seen:
            seen.append(count)
            raise sweep.CountChangedError(count)
        real(count, expect)

    monkeypatch.setattr(sweep, "_check", moving)
    assert invoke("queue", "purge", "default", "--yes").stdout == "revoked  1\n"


def test_queues_are_shown_paused_and_resumed(world: World, invoke: Invoke) -> None:
    world.add()
    assert invoke("queue", "pause", "default").stdout == ""
    found = {line[0]: line for line in rows(invoke("queue:status"))}
    assert (found["default"][2], found["default"][-1], len(found)) == ("1", "paused", 8)
    assert objects(invoke("queue", "status", "default", "--json"))[0]["isPaused"] is True
    assert invoke("queue", "resume", "default").exit_code == 0
    assert objects(invoke("queue", "status", "default", "--json"))[0]["isPaused"] is False
    assert rows(invoke("stats"))[4][:2] == ["default", "1"]


def test_it_is_told_whether_all_is_well(world: World, invoke: Invoke) -> None:
    for words in (["health"], ["status"], ["status", "--json"], ["health", "--json"], ["worker:ping"]):
        assert invoke(*words).exit_code == 4, words
    assert "redis unhealthy" in invoke("status").stdout
    assert "No worker is alive" in invoke("workers").stderr
    with world.system() as session:
        session.add(WorkerProcess(id="w1", host="h", pid=1, threads=8, queues=["default"], heartbeat_at=now()))
    assert rows(invoke("workers"))[0][0] == "w1"
    assert invoke("worker:ping").exit_code == 0
    assert objects(invoke("status", "--json"))[0]["threads"] == 8
    assert invoke("schedule", "list").exit_code == 0


def test_the_logs_of_a_run_are_found_where_they_are(world: World, invoke: Invoke, tmp_path: Path) -> None:
    run_id = world.add()
    with in_force(fixed_settings(tmp_path)):
        assert "no log files" in str(invoke("task", "logs", run_id).exception)
        (tmp_path / "logs").mkdir()
        lines = [{"timestamp": f"2026-01-01T00:00:0{at}Z", "task_id": run_id if at else "other", "message": str(at)} for at in (2, 0, 1)]
        (tmp_path / "logs/worker.log").write_text("\n".join(map(json.dumps, lines)))
        assert [line["message"] for line in objects(invoke("task", "logs", run_id))] == ["1", "2"]


def test_a_remote_api_is_asked_with_the_key(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []

    def request(method: str, url: str, **options: Any) -> httpx.Response:
        asked.append((method, url, options["headers"]))
        return httpx.Response(200, json={"items": []})

    monkeypatch.setattr(httpx, "request", request)
    result = CliRunner().invoke(app, ["--tenant", "acme", "--url", "http://mail.test/", "workers"], env={"MAILROOM_KEY": "mr_k"})
    assert result.exit_code == 0
    assert asked == [("GET", "http://mail.test/api/workers", {"X-Tenant-Id": "acme", "Authorization": "Bearer mr_k"})]


@pytest.mark.parametrize(
    ("status", "kind", "code"), [(404, NotFoundError, 3), (401, MailroomError, 1), (409, MailroomError, 1), (503, UnavailableError, 5)]
)
def test_an_error_of_the_api_keeps_its_sentence(status: int, kind: type[MailroomError], code: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(httpx, "request", lambda *_, **__: httpx.Response(status, json={"detail": "So it is."}))
    result = CliRunner().invoke(app, ["--url", "http://x", "--key", "k", "workers"])
    assert isinstance(result.exception, kind)
    assert (str(result.exception), exit_code(result.exception)) == ("So it is.", code)


def test_an_api_that_is_away_is_unreachable() -> None:
    result = CliRunner().invoke(app, ["--url", "http://127.0.0.1:1", "--key", "k", "status"])
    assert isinstance(result.exception, UnavailableError)
    assert "http://127.0.0.1:1 cannot be reached" in str(result.exception)


def test_here_the_real_application_is_mounted_and_needs_no_key(tmp_path: Path) -> None:
    with in_force(
        fixed_settings(tmp_path, database_url=SecretStr(f"sqlite:///{tmp_path / 'm.db'}"), redis_url=SecretStr("redis://127.0.0.1:1/0"))
    ) as settings:
        engine = make_engine(settings.database)
        upgrade(engine)
        engine.dispose()
        result = CliRunner().invoke(app, ["tasks", "registered", "--json"])
        assert {each["task"] for each in objects(result)} >= {"sync_emails", "send_email"}
        assert CliRunner().invoke(app, ["tasks", "active"]).exit_code == 0


def test_times_are_short() -> None:
    assert [span(each) for each in (None, 0.2, 12, 300, 7200, 200_000)] == ["-", "200 ms", "12 s", "5 min", "2 h", "2 d"]
    assert age("2020-01-01T00:00:00Z").endswith(" d")
    assert age("2200-01-01T00:00:00Z").startswith("in ")
