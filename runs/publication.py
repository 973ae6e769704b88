"""What the commit of recorded runs sets going: their messages leave, and limited ones are let on if there is room."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy.orm import Session

from brokers.message import Envelope
from storage.accept import level_of
from storage.engine import after_commit
from storage.repositories.runs import NewRun, Recorded


@dataclass
class Publication:
    """For all runs of a transaction together."""

    broker: Any  # the RunBroker's
    envelopes: list[Envelope] = field(default_factory=list)
    has_limited: bool = False

    def add(self, run: NewRun, recorded: Sequence[Recorded]) -> None:
        """Runs that differ from this one in what Recorded has."""
        self.envelopes += [envelope_for(run, each) for each in recorded if each.is_published]
        self.has_limited |= any(each.is_limited for each in recorded)

    def __call__(self) -> None:
        if self.envelopes:
            self.broker.publisher.publish(self.envelopes)
        if self.has_limited:
            self.broker.admit()


def envelope_for(run: NewRun, recorded: Recorded) -> Envelope:
    """The message of a run that was just recorded."""
    level = level_of(run.priority, recorded.crowd)
    return Envelope(recorded.run_id, run.task, run.queue, run.tenant_id, run.user_id, recorded.request_id or run.request_id, 0, level)


def publish_after_commit(session: Session, broker: Any, run: NewRun, recorded: Sequence[Recorded]) -> None:
    """With everything else that the session publishes."""
    if not any(each.is_published or each.is_limited for each in recorded):
        return
    waiting = [action for action in session.info.get("after_commit", ()) if isinstance(action, Publication)]
    publication = waiting[0] if waiting else Publication(broker)
    if not waiting:
        after_commit(session, publication)
    publication.add(run, recorded)
