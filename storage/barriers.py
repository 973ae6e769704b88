"""What keeps a run from starting, as conditions on its row: a pause of its queue, task or tenant; a limit of its tenant or mail host.

A barrier is a row of `pauses` or `limits`. Every run that is recorded while it stands waits behind it at once; whoever wrote before
it stood is found when it is swept: at first without delay, then now and again.
"""

from __future__ import annotations

from typing import Any

from sqlalchemy import ColumnElement, String, cast, exists, literal, or_, select

from storage.expressions import db_now_plus
from storage.models import Limit, Pause, TaskRun

SWEEP_SECONDS = 60.0
TENANT_NAME = cast(TaskRun.tenant_id, String)


def is_paused() -> ColumnElement[bool]:
    """Whether its queue, its task or its tenant is paused."""
    return _stands(Pause, queue=TaskRun.queue, task=TaskRun.task, tenant=TENANT_NAME)


def is_limited() -> ColumnElement[bool]:
    """Whether its tenant or its mail host has a limit: then only an admission (storage/admission.py) lets it on."""
    return _stands(Limit, tenant=TENANT_NAME, host=TaskRun.mail_host)


def is_unswept(barrier: type[Pause] | type[Limit]) -> ColumnElement[bool]:
    """Whether there may be runs before a barrier that belong behind it."""
    return or_(barrier.swept_at.is_(None), barrier.swept_at < db_now_plus(-SWEEP_SECONDS))


def _stands(barrier: type[Pause] | type[Limit], **names: Any) -> ColumnElement[bool]:
    """One probe of the primary key for each kind."""
    kinds = [select(literal(1)).where(barrier.kind == kind, barrier.name == name) for kind, name in names.items()]
    return or_(*[exists(kind.correlate(TaskRun)) for kind in kinds])
