"""What a sync of a mail account keeps to: one at a time, and the account remembers how it went."""

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
    """One sync at a time for an account; another one waits without spending an attempt. Raises NotFoundError.

    How it went is written in the transaction that gives the account back; a refused login counts, and the third in a row stops it.
    """
    run = current_run()
    run_id = run.run_id if run is not None else new_id()
    with session_scope() as session:
        clients = EmailClients(session)
        if not clients.begin_sync(clients.one(email_client_id).id, run_id):
            raise Snooze(BUSY_SECONDS, "Another sync of this account is running.")
    try:
        yield
    except BaseException as error:
        with session_scope() as session:
            _note(EmailClients(session), email_client_id, error)
            EmailClients(session).end_sync(email_client_id, run_id)
        raise
    with session_scope() as session:
        EmailClients(session).synced(email_client_id, run_id)


def _note(clients: EmailClients, email_client_id: str, error: BaseException) -> None:
    """Nothing is wrong with the account of a run that was revoked, waits, or failed for a reason of its own."""
    if isinstance(error, AuthenticationRefused):
        clients.login_refused(email_client_id, str(error))
    elif isinstance(error, MailroomError) and not isinstance(error, RunRevoked | Snooze):
        clients.sync_failed(email_client_id, str(error))
