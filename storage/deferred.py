"""What a session is to write may wait for its commit, like the ORM's own objects.

If nothing else happens in the session, it needs no transaction of its own: the work is done by whoever does it for many callers in one
commit. If the session turns to the database after all, the work joins its transaction first, so that everything is committed together
and a later query of the session finds it.
"""

from __future__ import annotations

from typing import Protocol

from sqlalchemy import Connection
from sqlalchemy.orm import Session, SessionTransaction

_HAS_BEGUN = "has_begun"
_DEFERRED = "deferred"


class Deferred(Protocol):
    """Work of one session. Exactly one of the two is called, once; neither if the session is rolled back."""

    @property
    def is_joined(self) -> bool:
        """Whether it wants to be part of the session's transaction in any case."""

    def join(self, session: Session, connection: Connection) -> None:
        """The session has just begun a transaction, on this connection: do it there."""

    def do_alone(self) -> None:
        """The session commits and has begun none: do it in a transaction of one's own. Whatever it raises ends the commit."""


def deferred(session: Session) -> Deferred | None:
    """What waits."""
    work: Deferred | None = session.info.get(_DEFERRED)
    return work


def may_defer(session: Session) -> bool:
    """Whether the session has begun no transaction. A savepoint may be rolled back alone, so nothing waits within one."""
    return not session.info.get(_HAS_BEGUN) and not session.in_nested_transaction()


def defer(session: Session, work: Deferred) -> None:
    """Let it wait. Only where `may_defer`, and one work for a session."""
    if not session.in_transaction():
        session.begin()  # on our side only, so that a rollback has something to end
    session.info[_DEFERRED] = work


def on_begin(session: Session, connection: Connection) -> None:
    """After the identity has been told to the server."""
    session.info[_HAS_BEGUN] = True
    work: Deferred | None = session.info.pop(_DEFERRED, None)
    if work is not None:
        work.join(session, connection)


def on_commit(session: Session) -> None:
    """Before a commit, and before the flush that it brings."""
    work = deferred(session)
    if work is None or session.in_nested_transaction():
        return
    if work.is_joined or session.new or session.dirty or session.deleted:
        session.connection()
        return
    del session.info[_DEFERRED]
    work.do_alone()


def on_end(session: Session, transaction: SessionTransaction) -> None:
    """Committed, rolled back or closed: nothing of it reaches the next transaction of the session."""
    if transaction.parent is None:
        session.info.pop(_HAS_BEGUN, None)
        session.info.pop(_DEFERRED, None)
