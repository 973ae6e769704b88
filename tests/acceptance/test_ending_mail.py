"""Runs that are ended while their thread waits for a mail server: no exception reaches it there, so that its process has to go.

Their workers are not measured: what is thrown into a thread may land in the coverage tracer while that holds its lock, and then every
thread of the process waits for ever.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from tests.acceptance.conftest import Mailroom
from tests.acceptance.installation import eventually, installed, new_virtual_host
from tests.acceptance.test_sync import PASSWORD, letter
from tests.servers.dovecot import Dovecot
from tests.servers.postgres import Postgres
from tests.servers.proxy import FaultProxy
from tests.servers.rabbitmq import RabbitMq
from tests.servers.smtp import SmtpSink

pytestmark = pytest.mark.acceptance

MESSAGES = 1500
"""Three batches."""
SLOW = 300_000.0
"""Bytes a second: a sync takes seconds, and is caught in the middle."""
STUCK = 120.0


@pytest.fixture(scope="module")
def mailroom(tmp_path_factory: pytest.TempPathFactory, rabbitmq: RabbitMq, postgres: Postgres) -> Iterator[Mailroom]:
    """One of their own, whose processes may end."""
    url = new_virtual_host(rabbitmq, "ending")
    with installed(tmp_path_factory.mktemp("ending"), postgres, "ending", RABBITMQ_URL=url) as installation:
        api = installation.start_api()
        worker = installation.start_worker(processes=2, COVERAGE_PROCESS_START="")
        yield Mailroom(installation, api, worker, installation.new_tenant("acme"), installation.new_admin(), url)


@pytest.fixture
def line(dovecot: Dovecot) -> Iterator[FaultProxy]:
    with FaultProxy(dovecot.imap_port) as proxy:
        yield proxy


def account(mailroom: Mailroom, dovecot: Dovecot, line: FaultProxy, user: str, messages: int) -> str:
    dovecot.add_user(user, PASSWORD)
    for number in range(messages):
        dovecot.deliver(user, letter(number))
    return mailroom.acme.new_client(email=f"{user}@acme.example", imap_port=line.port, imap_username=user, imap_password=PASSWORD)


def stored(mailroom: Mailroom, client_id: str) -> tuple[int, int]:
    """Rows, and different messages."""
    query = "SELECT count(*), count(DISTINCT message_id) FROM email_messages WHERE client_id = %s"
    rows, messages = mailroom.installation.query(query, client_id)[0]
    return int(rows), int(messages)


def terminated(mailroom: Mailroom, run_id: str) -> dict[str, Any]:
    """The end of a run that was ended by force."""
    assert mailroom.acme.http.post(f"/api/tasks/{run_id}/revoke", json={"terminate": True}).status_code == 200
    return mailroom.acme.ended(run_id)


def test_a_sync_that_waits_for_a_greeting_past_its_hard_limit_is_tried_again(
    mailroom: Mailroom, dovecot: Dovecot, line: FaultProxy
) -> None:
    acme, client_id = mailroom.acme, account(mailroom, dovecot, line, "greeting", 3)
    limit = "UPDATE task_runs SET hard_limit = %s WHERE id = %s"
    line.hold()
    run_id = acme.enqueue("/api/email/sync", {"email_client_id": client_id})
    eventually(lambda: line.open_connections, "the sync waits for a greeting")
    mailroom.installation.query(limit, 1, run_id)
    acme.in_state(run_id, "RETRY")
    mailroom.installation.query(limit, 300, run_id)
    line.heal()
    run = acme.ended(run_id)
    assert (run["state"], run["result"]["messages_synced"], len(run["attempts"])) == ("SUCCESS", 3, 2)
    eventually(lambda: not line.open_connections, "nothing is left open")


def test_a_sync_that_waits_in_the_middle_of_a_body_is_ended_and_the_next_goes_on(
    mailroom: Mailroom, dovecot: Dovecot, line: FaultProxy
) -> None:
    acme, client_id = mailroom.acme, account(mailroom, dovecot, line, "body", MESSAGES)
    line.rate = SLOW
    run_id = acme.enqueue("/api/email/sync", {"email_client_id": client_id})
    eventually(lambda: stored(mailroom, client_id)[0], "the first batch is stored")
    line.hold()
    assert terminated(mailroom, run_id)["state"] == "REVOKED"
    before, _ = stored(mailroom, client_id)
    assert 0 < before < MESSAGES
    line.heal()
    eventually(lambda: not line.open_connections, "nothing of it is left open")
    again = acme.ended(acme.enqueue("/api/email/sync", {"email_client_id": client_id}))
    assert (again["state"], again["result"]["messages_synced"]) == ("SUCCESS", MESSAGES - before)
    assert stored(mailroom, client_id) == (MESSAGES, MESSAGES)


@pytest.mark.parametrize(("waits_for", "becomes"), [("early_delay", "cancelled"), ("delay", "uncertain")])
def test_a_mail_whose_server_does_not_answer_is_ended_as_what_it_is(
    mailroom: Mailroom, smtp_sink: SmtpSink, waits_for: str, becomes: str
) -> None:
    acme = mailroom.acme
    client_id = acme.new_client(email="ann@acme.example", smtp_port=smtp_sink.port)
    setattr(smtp_sink, waits_for, STUCK)
    run_id = acme.enqueue("/api/email/send", {"email_client_id": client_id, "to": ["bob@globex.example"], "subject": becomes})
    marked = "SELECT count(*) FROM outbound_emails WHERE client_id = %s AND status = 'sending'"
    if waits_for == "delay":
        eventually(lambda: mailroom.installation.query(marked, client_id)[0][0], "the mail is at the final dot")
    else:
        acme.in_state(run_id, "STARTED")
    assert terminated(mailroom, run_id)["state"] == "REVOKED"
    smtp_sink.reset()
    mailroom.admin.http.post("/api/schedules/process_pending_emails/run").raise_for_status()
    status = "SELECT status FROM outbound_emails WHERE client_id = %s"
    eventually(lambda: mailroom.installation.query(status, client_id)[0][0] == becomes, f"the mail is {becomes}")
    again = acme.ended(acme.enqueue("/api/email/send", {"email_client_id": client_id, "to": ["bob@globex.example"]}))
    assert again["state"] == "SUCCESS"
