"""The scheduled tasks. They run as the system and only fan out; the work is ordinary runs of their tenants."""

from __future__ import annotations

from typing import TypedDict

from periodiq import cron

from actors.sync import sync_emails
from brokers.queues import Queue
from runs.enqueue import enqueue
from runs.task import task
from storage.engine import session_scope
from storage.repositories.email_clients import EmailClients, sync_key


class PeriodicSyncResult(TypedDict):
    """The runs that were started, or were under way already."""

    status: str
    task_ids: list[str]


@task(queue=Queue.PERIODIC, periodic=cron("*/5 * * * *"))
def periodic_sync() -> PeriodicSyncResult:
    """Start one sync for every account that is due; each has its own attempts and history."""
    with session_scope(system=True) as session:
        task_ids = [
            enqueue(
                session,
                sync_emails.options(tenant=client.tenant_id, user=client.user_id, unique_key=sync_key(client.id)),
                email_client_id=client.id,
            )
            for client in EmailClients(session).due_for_sync()
        ]
    return PeriodicSyncResult(status="success", task_ids=task_ids)
