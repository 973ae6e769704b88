"""Accepts runs that need no transaction of their caller's, many to a commit.

One thread. While the database commits a batch, the next gathers: a lonely call waits for nothing, and thirty-two threads that
enqueue at the same moment share one transaction. `submit` returns after the commit, like `enqueue` and its session.
"""

from __future__ import annotations

import queue
import threading
from collections import defaultdict
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field, replace
from typing import Any

from sqlalchemy import Engine

from core.ids import new_id
from core.settings import get_settings
from core.tenancy import current_identity
from runs.enqueue import Publication, envelope_for, new_run, owner_of, record, record_checked
from runs.registry import check_arguments, has_resources, secrets_of
from runs.task import Call
from storage.dispatch import PUBLISH_GRACE_SECONDS
from storage.engine import session_scope
from storage.intake import PostgresIntake
from storage.repositories.runs import NewRun

MAX_BATCH = 1000


@dataclass(frozen=True, slots=True, eq=False)
class _Request:
    call: Call[Any, Any]
    run: NewRun
    accepted: Future[str] = field(default_factory=Future)


class Intake:
    """Opened on first use, never before a fork."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._prepared = PostgresIntake(engine) if engine.dialect.name == "postgresql" else None
        self._inbox: queue.SimpleQueue[_Request | None] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None

    def submit(self, call: Call[Any, Any], arguments: dict[str, Any]) -> str:
        """Records a run for the bound identity and returns its id, or that of the live run with the same unique key.

        Raises what `enqueue` raises; nothing is recorded then.
        """
        identity = current_identity()
        if not _is_plain(call):
            with session_scope(engine=self._engine) as session:
                return record(session, call, arguments)[0]
        checked = check_arguments(call.task, arguments)
        tenant_id, user_id = owner_of(identity, call)
        request = _Request(call, replace(new_run(call, checked, tenant_id, user_id), run_id=new_id()))
        self._inbox.put(request)
        self._ensure_running()
        return request.accepted.result()

    def close(self) -> None:
        """Accepts what was submitted and ends the thread."""
        with self._lock:
            thread, self._thread = self._thread, None
        if thread is not None:
            self._inbox.put(None)
            thread.join(10)

    def _ensure_running(self) -> None:
        with self._lock:
            if self._thread is None or not self._thread.is_alive():
                self._thread = threading.Thread(target=self._run, name="intake", daemon=True)
                self._thread.start()

    def _run(self) -> None:
        stopped = False
        while not stopped:
            requests, stopped = self._gather()
            if requests:
                self._accept(requests)
        if self._prepared is not None:
            self._prepared.close()

    def _gather(self) -> tuple[list[_Request], bool]:
        """Waits for the first, then takes all there are."""
        requests: list[_Request] = []
        request = self._inbox.get()
        while request is not None:
            requests.append(request)
            if len(requests) >= MAX_BATCH:
                return requests, False
            try:
                request = self._inbox.get_nowait()
            except queue.Empty:
                return requests, False
        return requests, True

    def _accept(self, requests: Sequence[_Request]) -> None:
        """All in one transaction; if that fails, each in one of its own, so that none fails for another's sake."""
        try:
            ids = self._record(requests)
        except Exception as error:
            if len(requests) == 1:
                requests[0].accepted.set_exception(error)
            else:
                for request in requests:
                    self._accept([request])
            return
        for request, run_id in zip(requests, ids, strict=True):
            request.accepted.set_result(run_id)

    def _record(self, requests: Sequence[_Request]) -> list[str]:
        if self._prepared is None:
            return self._record_portably(requests)
        runs = [request.run for request in requests]
        recorded = self._prepared.accept(runs, PUBLISH_GRACE_SECONDS, get_settings().tenant_window)
        publication = Publication(requests[0].call.task.broker)
        publication.envelopes = [envelope_for(run, each) for run, each in zip(runs, recorded, strict=True) if each.is_published]
        publication.has_limited = any(each.is_limited for each in recorded)
        publication()
        return [each.run_id for each in recorded]

    def _record_portably(self, requests: Sequence[_Request]) -> list[str]:
        """Those of one tenant and call together: their rows differ in little."""
        places: dict[tuple[Call[Any, Any], str, str | None], list[int]] = defaultdict(list)
        for place, request in enumerate(requests):
            places[request.call, request.run.tenant_id, request.run.user_id].append(place)
        with session_scope(system=True, engine=self._engine) as session:
            for (call, tenant_id, user_id), theirs in places.items():
                runs = [requests[place].run for place in theirs]
                record_checked(
                    session,
                    replace(call, tenant=tenant_id, user=user_id),
                    [run.args for run in runs],
                    [run.run_id for run in runs],
                    [run.request_id or run.run_id for run in runs],
                )
        return [request.run.run_id for request in requests]


def _is_plain(call: Call[Any, Any]) -> bool:
    """Nothing of it has to be looked up, or kept apart, in the tenant's own session."""
    task = call.task
    return not (call.is_for_one or call.after or call.group or has_resources(task) or secrets_of(task) or "mail_host" in task.options)
