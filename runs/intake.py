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

import structlog
from sqlalchemy import Engine

from core.ids import new_id
from core.tenancy import current_identity
from runs.enqueue import owner_of, record, record_checked
from runs.registry import check_arguments, has_resources
from runs.task import Call
from storage.engine import session_scope

MAX_BATCH = 1000


@dataclass(frozen=True, slots=True, eq=False)
class _Request:
    call: Call[Any, Any]
    arguments: dict[str, Any]
    request_id: str
    accepted: Future[str] = field(default_factory=Future)


class Intake:
    """Opened on first use, never before a fork."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
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
        request_id = structlog.contextvars.get_contextvars().get("request_id") or new_id()
        request = _Request(replace(call, tenant=tenant_id, user=user_id), checked, request_id)
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
        places: dict[Call[Any, Any], list[int]] = defaultdict(list)
        for place, request in enumerate(requests):
            places[request.call].append(place)
        ids = [""] * len(requests)
        with session_scope(system=True, engine=self._engine) as session:
            for call, theirs in places.items():
                arguments = [requests[place].arguments for place in theirs]
                recorded = record_checked(session, call, arguments, request_ids=[requests[place].request_id for place in theirs])
                for place, run_id in zip(theirs, recorded, strict=True):
                    ids[place] = run_id
        return ids


def _is_plain(call: Call[Any, Any]) -> bool:
    """Nothing of it has to be looked up in the tenant's own session."""
    return not (call.is_for_one or call.after or call.group or has_resources(call.task) or "mail_host" in call.task.options)
