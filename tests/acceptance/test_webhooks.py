"""A mail is sent by the real processes, and a real server hears of it, signed."""

from __future__ import annotations

import http.server
import itertools
import json
import queue
import threading
from collections.abc import Iterator
from typing import Any

import pytest
from standardwebhooks import Webhook

from tests.acceptance.conftest import Mailroom
from tests.acceptance.installation import eventually
from tests.servers.smtp import SmtpSink

pytestmark = pytest.mark.acceptance
Heard = queue.Queue[tuple[dict[str, str], bytes]]


@pytest.fixture
def ear() -> Iterator[tuple[str, Heard]]:
    """A server that is broken the first time it hears of anything."""
    heard: Heard = queue.Queue()
    numbers = itertools.count()

    class Hears(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            heard.put(({name.lower(): value for name, value in self.headers.items()}, body))
            self.send_response(500 if next(numbers) == 0 else 204)
            self.end_headers()

        def log_message(self, *_: Any) -> None: ...

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hears) as server:
        server.daemon_threads = True
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}/", heard
        server.shutdown()


def test_what_becomes_of_a_mail_is_posted_signed_and_posted_again_after_a_failure(
    mailroom: Mailroom, smtp_sink: SmtpSink, ear: tuple[str, Heard]
) -> None:
    url, heard = ear
    tenant = mailroom.installation.new_tenant("hooked")
    admin = {"X-Tenant-Id": tenant.id}
    answer = mailroom.admin.http.post("/api/webhooks", json={"url": url, "events": ["task.succeeded", "email.sent"]}, headers=admin)
    assert answer.status_code == 201, answer.text
    hook = answer.json()
    client_id = tenant.new_client(email="ann@hooked.example", smtp_port=smtp_sink.port)

    def send() -> str:
        return tenant.enqueue("/api/email/send", {"email_client_id": client_id, "to": ["bob@globex.example"], "subject": "Hello"})

    run_id = send()
    assert tenant.ended(run_id)["state"] == "SUCCESS"

    def all_told(*types: str) -> bool:
        found = mailroom.admin.http.get(f"/api/webhooks/{hook['id']}/deliveries", headers=admin).raise_for_status().json()["items"]
        return set(types) <= {each["type"] for each in found} and {each["status"] for each in found} == {"delivered"}

    eventually(lambda: all_told("task.succeeded"), "the run's end is told", 60)
    send()  # whatever processes saw at first, by now they know the webhook
    eventually(lambda: all_told("task.succeeded", "email.sent"), "the mail's end is told", 60)
    events: dict[str, dict[str, Any]] = {}
    tries = []
    while not heard.empty():
        headers, body = heard.get()
        assert Webhook(hook["secret"]).verify(body, headers) == json.loads(body)
        events[headers["webhook-id"]] = json.loads(body)
        tries.append(headers["webhook-id"])
    assert run_id in {event["data"].get("taskId") for event in events.values()}
    assert len(tries) > len(events)  # the first was told twice
    assert b"bob@globex.example" not in str(events).encode()
