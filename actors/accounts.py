"""What every run on a mail account keeps to: one sync at a time, and the account remembers how it went."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from core.errors import MailroomError, Snooze
from core.ids import new_id
from mail.errors import AuthenticationRefused
from runs.current import RunRevoked, current_run
from storage.engine import session_scope
from storage.repositories.email_clients import EmailClients

BUSY_SECONDS = 2.0


@contextmanager
def account_to_itself(email_client_id: str) -> Iterator[None]:
    """One sync at a time for an account; another one waits without spending an attempt. Raises NotFoundError."""
    run = current_run()
    run_id = run.run_id if run is not None else new_id()
    with session_scope() as session:
        clients = EmailClients(session)
        if not clients.begin_sync(clients.one(email_client_id).id, run_id):
            raise Snooze(BUSY_SECONDS, "Another sync of this account is running.")
    try:
        yield
    finally:
        with session_scope() as session:
            EmailClients(session).end_sync(email_client_id, run_id)


@contextmanager
def account_told(email_client_id: str) -> Iterator[None]:
    """The account remembers how its sync went; a refused login counts, and the third in a row stops it."""
    try:
        yield
    except AuthenticationRefused as error:
        with session_scope() as session:
            EmailClients(session).login_refused(email_client_id, str(error))
        raise
    except (RunRevoked, Snooze):  # nothing is wrong with the account
        raise
    except MailroomError as error:
        with session_scope() as session:
            EmailClients(session).sync_failed(email_client_id, str(error))
        raise
    with session_scope() as session:
        EmailClients(session).synced(email_client_id)
