"""The tasks that talk to an account's servers say to which, so that the limits of these hold."""

from __future__ import annotations

import actors.send
import actors.sync
from tests.unit.actor_world import Actors, acting

__all__ = ["acting"]


def test_a_sync_is_under_the_limits_of_the_imap_server_and_a_mail_under_those_of_the_smtp_server(acting: Actors) -> None:
    ann = acting.record.people.ann
    client = acting.account(ann, imap_host="IMAP.acme.test", smtp_host="smtp.acme.test.")
    sync = acting.record.enqueue(actors.sync.sync_emails, identity=ann, email_client_id=client)
    mail = acting.record.enqueue(actors.send.send_email, identity=ann, email_client_id=client, to=["bob@x.test"])
    assert [acting.record.run(run_id).mail_host for run_id in (sync, mail)] == ["imap.acme.test", "smtp.acme.test"]


def test_an_account_without_that_server_is_under_no_hosts_limit(acting: Actors) -> None:
    ann = acting.record.people.ann
    client = acting.account(ann)
    run_id = acting.record.enqueue(actors.sync.sync_emails, identity=ann, email_client_id=client)
    assert acting.record.run(run_id).mail_host is None
