"""Accepts runs that need no transaction of their caller's, many to a commit.

While the database commits a batch, the next gathers. `submit` returns after the commit, like `enqueue` and its session.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from sqlalchemy import Engine

from core.ids import new_id
from core.settings import get_settings
from core.tenancy import current_identity
from runs.enqueue import Publication, envelope_for, new_run, owner_of, record, record_checked
from runs.gatherer import Gatherer
from runs.registry import check_arguments, has_resources, secrets_of
from runs.task import Call
from storage.dispatch import PUBLISH_GRACE_SECONDS
from storage.engine import session_scope
from storage.intake import PostgresIntake
from storage.repositories.runs import NewRun

MAX_BATCH = 1000


@dataclass(frozen=True, slots=True, eq=False)
class _Asked:
    call: Call[Any, Any]
    run: NewRun


class Intake(Gatherer[_Asked, str]):
    """For all threads of a process."""

    def __init__(self, engine: Engine) -> None:
        super().__init__("intake", most=MAX_BATCH, alone_if_refused=True)
        self._engine = engine
        self._prepared = PostgresIntake(engine) if engine.dialect.name == "postgresql" else None

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
        return self.ask(_Asked(call, replace(new_run(call, checked, tenant_id, user_id), run_id=new_id())))

    def _end(self) -> None:
        if self._prepared is not None:
            self._prepared.close()

    def _do(self, asked: Sequence[_Asked]) -> list[str]:
        """All in one transaction."""
        if self._prepared is None:
            return self._record_portably(asked)
        runs = [each.run for each in asked]
        recorded = self._prepared.accept(runs, PUBLISH_GRACE_SECONDS, get_settings().tenant_window)
        publication = Publication(asked[0].call.task.broker)
        publication.envelopes = [envelope_for(run, each) for run, each in zip(runs, recorded, strict=True) if each.is_published]
        publication.has_limited = any(each.is_limited for each in recorded)
        publication()
        return [each.run_id for each in recorded]

    def _record_portably(self, asked: Sequence[_Asked]) -> list[str]:
        """Those of one tenant and call together: their rows differ in little."""
        places: dict[tuple[Call[Any, Any], str, str | None], list[int]] = defaultdict(list)
        for place, each in enumerate(asked):
            places[each.call, each.run.tenant_id, each.run.user_id].append(place)
        with session_scope(system=True, engine=self._engine) as session:
            for (call, tenant_id, user_id), theirs in places.items():
                runs = [asked[place].run for place in theirs]
                record_checked(
                    session,
                    replace(call, tenant=tenant_id, user=user_id),
                    [run.args for run in runs],
                    [run.run_id for run in runs],
                    [run.request_id or run.run_id for run in runs],
                )
        return [each.run.run_id for each in asked]


def _is_plain(call: Call[Any, Any]) -> bool:
    """Nothing of it has to be looked up, or kept apart, in the tenant's own session."""
    task = call.task
    return not (call.is_for_one or call.after or call.group or has_resources(task) or secrets_of(task) or "mail_host" in task.options)
