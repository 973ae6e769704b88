"""Mail sent by real workers to an SMTP server, and what of it never leaves the database: not in a log line, not on a broker."""

from __future__ import annotations

import email
import email.policy
import json
import signal
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from tests.acceptance.conftest import Mailroom
from tests.acceptance.installation import eventually
from tests.servers.smtp import SmtpSink

pytestmark = pytest.mark.acceptance

SUBJECT = "canary subject grüße 5711"
BODY = "canary body 5712"
HTML = "<p>canary html 5713</p>"
BCC = "canary-bcc-5714@globex.example"
FILE = b"%PDF-1.7 canary file 5715"
SENDER = "canary-sender-5716@acme.example"
PASSWORD = "canary-password-5717"


def mail(client_id: str, **changes: Any) -> dict[str, Any]:
    standard = {"to": ["bob@globex.example"], "subject": SUBJECT, "body_text": BODY}
    return {"email_client_id": client_id, **standard, **changes}


@pytest.fixture(scope="module")
def client_id(mailroom: Mailroom, _smtp_server: SmtpSink) -> str:
    return mailroom.acme.new_client(email=SENDER, smtp_port=_smtp_server.port, name="Ann of Acme")


def test_a_mail_goes_out_with_everything_but_its_bcc(mailroom: Mailroom, client_id: str, smtp_sink: SmtpSink) -> None:
    acme = mailroom.acme
    uploaded = acme.http.post("/api/email/attachments", files={"file": ("Größe.pdf", FILE, "application/pdf")})
    assert uploaded.status_code == 201, uploaded.text
    body = mail(
        client_id,
        to=["Bob <bob@globex.example>"],
        cc=["carol@globex.example"],
        bcc=[BCC],
        body_html=HTML,
        attachment_ids=[uploaded.json()["id"]],
    )
    run = acme.ended(acme.enqueue("/api/email/send", body, "send-5718"))
    assert run["state"] == "SUCCESS", run
    (received,) = smtp_sink.wait_for(1)
    assert sorted(received.recipients) == ["bob@globex.example", BCC, "carol@globex.example"]
    assert received.sender == SENDER
    assert BCC.encode() not in received.raw
    assert b"bcc" not in received.raw.lower()

    message = email.message_from_bytes(received.raw, policy=email.policy.default)
    assert run["result"]["message_id"] == message["Message-ID"]
    assert run["result"]["recipients_sent"] == 3
    assert message["Subject"] == SUBJECT
    plain, html = message.get_body(("plain",)), message.get_body(("html",))
    assert plain is not None
    assert html is not None
    assert plain.get_content().strip() == BODY
    assert "canary html 5713" in html.get_content()
    (attachment,) = message.iter_attachments()
    assert (attachment.get_filename(), attachment.get_content()) == ("Größe.pdf", FILE)

    (outbound,) = acme.http.get("/api/outbound-emails", params={"limit": 1}).json()["items"]
    whole = acme.http.get(f"/api/outbound-emails/{outbound['id']}").json()
    assert (whole["status"], whole["messageId"]) == ("sent", run["result"]["message_id"])
    assert [each["status"] for each in whole["recipients"]] == ["sent"] * 3


def test_a_refused_recipient_is_a_dead_letter_with_the_server_s_words(mailroom: Mailroom, client_id: str, smtp_sink: SmtpSink) -> None:
    smtp_sink.refuse["gone@globex.example"] = "550 5.1.1 No such user"
    run = mailroom.acme.ended(mailroom.acme.enqueue("/api/email/send", mail(client_id, to=["gone@globex.example"])))
    assert (run["state"], run["error"]["type"]) == ("FAILURE", "RecipientRejected")
    assert smtp_sink.received == []


def test_a_lost_reply_after_the_final_dot_is_never_sent_again(mailroom: Mailroom, client_id: str, smtp_sink: SmtpSink) -> None:
    smtp_sink.drop_after_dot = True
    run = mailroom.acme.ended(mailroom.acme.enqueue("/api/email/send", mail(client_id)))
    assert (run["state"], run["error"]["type"]) == ("FAILURE", "DeliveryUncertain")
    assert mailroom.acme.http.get("/api/outbound-emails", params={"limit": 1}).json()["items"][0]["status"] == "uncertain"
    smtp_sink.drop_after_dot = False
    mailroom.acme.http.post(f"/api/tasks/{run['taskId']}/replay")
    assert mailroom.acme.ended(run["taskId"])["state"] == "FAILURE"
    assert len(smtp_sink.received) == 1


def test_what_waits_on_the_broker_holds_ids_and_no_mail(mailroom: Mailroom, client_id: str, smtp_sink: SmtpSink) -> None:
    """The worker is stopped meanwhile, so that the message can be looked at."""
    mailroom.worker.send(signal.SIGTERM)
    assert mailroom.worker.wait() == 0
    acme = mailroom.acme
    try:
        run_id = acme.enqueue("/api/email/send", mail(client_id, bcc=[BCC], body_html=HTML), "peek-5719")
        (body,) = eventually(lambda: mailroom.peek("send"), "the message in RabbitMQ")
        envelope = json.loads(body)
        assert envelope["message_id"] == run_id
        assert (envelope["args"], envelope["kwargs"]) == ([], {})
        assert {"tenant_id", "user_id", "request_id", "attempt", "priority", "signature", "v"} == envelope["options"].keys()
        assert b"canary" not in body
        assert acme.status(run_id)["waitingFor"] == "queue"
    finally:
        mailroom.worker = mailroom.installation.start_worker(processes=2)
    assert acme.ended(run_id)["state"] == "SUCCESS"
    assert len(smtp_sink.received) == 1


def test_no_secret_address_subject_or_body_is_in_any_log_line_or_dead_letter(
    mailroom: Mailroom, client_id: str, smtp_sink: SmtpSink
) -> None:
    """Also when everything goes wrong at once: a password that is refused, a server that repeats what it was told."""
    acme = mailroom.acme
    secret = acme.new_client(email=SENDER, smtp_port=smtp_sink.port, smtp_username="canary-user-5720", smtp_password=PASSWORD)
    smtp_sink.refuse[BCC] = f"550 5.1.1 <{BCC}> unknown"
    smtp_sink.refuse_data = f"554 5.7.1 refused: {SENDER}"
    acme.ended(acme.enqueue("/api/email/send", mail(client_id, to=[BCC])))
    acme.ended(acme.enqueue("/api/email/send", mail(client_id)))
    refused = acme.ended(acme.enqueue("/api/email/send", mail(secret)))
    assert refused["state"] == "FAILURE"
    dead = eventually(lambda: len(found := mailroom.peek("send.XQ")) >= 3 and found, "the dead letters in send.XQ")
    for body in [*dead, *mailroom.peek("sync.XQ")]:
        assert b"canary" not in body
    for name, text in mailroom.installation.logs().items():
        assert text, name
        for line in text.splitlines():
            assert isinstance(json.loads(line), dict)
            assert "canary" not in line, (name, line)
            assert "@" not in line, (name, line)


def test_a_tenant_s_key_sees_and_sends_only_its_own(mailroom: Mailroom, client_id: str) -> None:
    other = mailroom.installation.new_tenant("initech", user="ira")
    assert other.http.post("/api/email/send", json=mail(client_id)).status_code == 404
    assert other.http.get("/api/tasks").json()["items"] == []


def test_a_mail_of_the_outbox_goes_when_it_is_time_and_a_cancelled_one_never(
    mailroom: Mailroom, client_id: str, smtp_sink: SmtpSink
) -> None:
    acme = mailroom.acme
    moment = (datetime.now(UTC) + timedelta(seconds=2)).isoformat()
    body = {"emailClientId": client_id, "to": ["bob@globex.example"], "subject": "Later", "bodyText": "x", "scheduledAt": moment}
    going, cancelled = (acme.http.post("/api/outbound-emails", json=body).raise_for_status().json() for _ in range(2))
    assert acme.http.post(f"/api/outbound-emails/{cancelled['id']}/cancel").json()["status"] == "cancelled"
    run = acme.ended(going["runId"])
    assert (run["state"], run["result"]["message_id"]) == ("SUCCESS", going["messageId"])
    assert acme.ended(cancelled["runId"])["state"] == "REVOKED"
    assert [received.recipients for received in smtp_sink.wait_for(1)] == [["bob@globex.example"]]
    assert going["messageId"].encode() in smtp_sink.received[0].raw


def test_a_greylisted_recipient_is_tried_again_alone(mailroom: Mailroom, client_id: str, smtp_sink: SmtpSink) -> None:
    acme = mailroom.acme
    smtp_sink.refuse["later@globex.example"] = "451 4.7.1 Greylisted, try again in 1 seconds"
    body = {"emailClientId": client_id, "to": ["now@globex.example", "later@globex.example"], "subject": "Grey", "bodyText": "x"}
    made = acme.http.post("/api/outbound-emails", json=body).raise_for_status().json()
    smtp_sink.wait_for(1)
    smtp_sink.refuse.clear()
    run = acme.ended(made["runId"])
    assert (run["state"], run["result"]["recipients_sent"], len(run["attempts"]) >= 2) == ("SUCCESS", 2, True), run
    assert [received.recipients for received in smtp_sink.wait_for(2)] == [["now@globex.example"], ["later@globex.example"]]
    whole = acme.http.get(f"/api/outbound-emails/{made['id']}").json()
    assert (whole["status"], whole["attempts"]) == ("sent", 2)
