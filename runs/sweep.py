"""What people do to many runs at once: revoke by filter, replay and purge dead letters. First a count, then the deed, for that count.

Every function works in the caller's session and so in its tenant, and commits after each batch of at most a thousand rows: a
hundred thousand runs are never locked together, and whoever interrupts a sweep keeps what was done.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from datetime import datetime
from functools import partial

from sqlalchemy.orm import Session

from core.errors import ConflictError
from core.logging import get_logger
from storage.repositories.many_runs import BATCH, BEFORE_ANY_ID, ManyRuns
from storage.repositories.runs import RunFilter
from storage.states import LIVE, WAITING, State

log = get_logger(__name__)
PASSES = 3
"""Runs that move while they are swept (claimed, handed back) are met again."""


class CountChangedError(ConflictError):
    """There are not as many as the caller was told and agreed to; nothing was changed."""

    code = "count_changed"

    def __init__(self, count: int) -> None:
        super().__init__(
            f"There are {count} now, not as many as were expected, so nothing was changed. Look again; "
            "if the number does not hold still, pause the queue first."
        )
        self.count = count


@dataclass(frozen=True, slots=True)
class Revoked:
    """`revoked`: waiting runs that have ended. `marked`: running ones that end as soon as their actors let them."""

    revoked: int
    marked: int


@dataclass(frozen=True, slots=True)
class Replayed:
    """`skipped`: dead letters whose unique key another live run holds."""

    replayed: int
    skipped: int


def count_live(session: Session, narrowed: RunFilter) -> int:
    """How many `revoke_many` would touch now."""
    runs = ManyRuns(session)
    return runs.count_exactly(_live(narrowed), runs.database_time())


def revoke_many(session: Session, narrowed: RunFilter, *, expect: int, terminate: bool = False) -> Revoked:
    """Ends waiting runs and marks running ones; `narrowed.states` may say which (default: both). Raises CountChangedError."""
    runs, narrowed = ManyRuns(session), _live(narrowed)
    until = runs.database_time()
    _check(runs.count_exactly(narrowed, until), expect)
    return revoke_live(session, narrowed, until, terminate=terminate)


def revoke_live(session: Session, narrowed: RunFilter, until: datetime, *, terminate: bool = False) -> Revoked:
    """`revoke_many` of what was recorded until then, however many there are."""
    runs, narrowed = ManyRuns(session), _live(narrowed)
    revoked = marked = 0
    for _ in range(PASSES):
        before = revoked + marked
        if WAITING & set(narrowed.states):
            waiting = replace(narrowed, states=sorted(WAITING & set(narrowed.states)))
            revoked += sum(_batches(session, partial(runs.revoke_waiting, waiting, until)))
        if State.STARTED in narrowed.states:
            running = replace(narrowed, states=[State.STARTED])
            marked += sum(_batches(session, partial(runs.mark_running, running, until, terminate=terminate)))
        if revoked + marked == before:
            break
    log.info("runs_revoked", revoked=revoked, marked=marked, terminate=terminate)
    return Revoked(revoked, marked)


def count_dead(session: Session, narrowed: RunFilter) -> int:
    """How many dead letters there are now."""
    runs = ManyRuns(session)
    return runs.count_exactly(_dead(narrowed), runs.database_time())


def replay_dead_letters(session: Session, narrowed: RunFilter, *, expect: int) -> Replayed:
    """Gives dead letters a full set of attempts. Raises CountChangedError."""
    runs, narrowed = ManyRuns(session), _dead(narrowed)
    until = runs.database_time()
    _check(runs.count_exactly(narrowed, until), expect)
    replayed = looked_at = 0

    def batch(after: str) -> list[str]:
        nonlocal replayed
        ids, done = runs.replay_dead(narrowed, until, after)
        replayed += len(done)
        return ids

    looked_at = sum(_batches(session, batch))
    log.info("dead_letters_replayed", replayed=replayed, skipped=looked_at - replayed)
    return Replayed(replayed, looked_at - replayed)


def purge_dead_letters(session: Session, narrowed: RunFilter, *, expect: int) -> int:
    """Takes dead letters off the list; the history keeps them. Returns how many. Raises CountChangedError."""
    runs, narrowed = ManyRuns(session), _dead(narrowed)
    until = runs.database_time()
    _check(runs.count_exactly(narrowed, until), expect)
    purged = sum(_batches(session, partial(runs.purge_dead, narrowed, until)))
    log.info("dead_letters_purged", purged=purged)
    return purged


def _batches(session: Session, step: Callable[[str], list[str]]) -> Iterator[int]:
    """The sizes of a sweep's batches, each committed."""
    after = BEFORE_ANY_ID
    while True:
        ids = step(after)
        session.commit()
        yield len(ids)
        if len(ids) < BATCH:
            return
        after = ids[-1]


def _check(count: int, expect: int) -> None:
    if count != expect:
        raise CountChangedError(count)


def _live(narrowed: RunFilter) -> RunFilter:
    """Waiting and running, or what of them is asked for."""
    wanted = set(narrowed.states) & LIVE if narrowed.states else LIVE
    return replace(narrowed, states=sorted(wanted))


def _dead(narrowed: RunFilter) -> RunFilter:
    return replace(narrowed, dead_letters_only=True)
