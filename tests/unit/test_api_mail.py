"""Accounts, stored mail, uploads, the outbox, and what operators look at."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import select

import runs.health
from api.health import Health
from api.routes.attachments import safe_filename
from core.clock import now
from core.errors import PermanentError, Snooze, TransientError
from core.tenancy import SYSTEM_TENANT, current_identity
from mail.folder_names import RemoteFolder
from mail.mime import parse_message
from mail.sync import FetchedMessage, FolderCursor, SyncBatch
from storage.engine import session_scope
from storage.models import EmailAttachment, EmailClient, EmailMessage, OutboundEmail, Schedule, ScheduleTick, WorkerProcess
from storage.repositories.email_clients import EmailClients
from storage.repositories.messages import EmailMessages
from tests.unit.api_world import World, shared_world, world

__all__ = ["shared_world", "world"]
NEW = {
    "name": "Work",
    "email": "ann@acme.test",
    "imap_host": "imap.acme.test",
    "imap_port": 993,
    "imap_security": "tls",
    "imap_password": "hunter2",
}
ANN = {"X-User-Id": "Ann"}


def test_an_account_is_made_read_changed_and_deleted(world: World) -> None:
    made = world.post("/api/email/clients", json=NEW, headers=ANN)
    assert made.status_code == 201, made.text
    client = made.json()
    assert made.headers["location"] == f"/api/email/clients/{client['id']}"
    assert (client["hasImapPassword"], client["hasSmtpPassword"], client["userId"]) == (True, False, world.acme.user_id)
    assert (client["isSyncEnabled"], client["syncInterval"], client["lastSyncAt"], client["lastError"], client["refusedLogins"]) == (
        True,
        300,
        None,
        None,
        0,
    )
    assert "hunter2" not in made.text
    with world.as_tenant(world.acme) as session:
        clients = EmailClients(session, world.settings.credential_keys)
        assert clients.imap_login(clients.one(client["id"])).password == "hunter2"
    path = made.headers["location"]
    changed = world.call("PATCH", path, json={"sync_interval": 60, "imap_username": None, "smtp_host": "smtp.acme.test"})
    assert changed.status_code == 200, changed.text
    assert (changed.json()["syncInterval"], changed.json()["smtpHost"], changed.json()["hasImapPassword"]) == (60, "smtp.acme.test", True)
    assert world.get(path).json() == changed.json()
    assert len(world.get("/api/email/clients").json()["items"]) == 2
    assert world.call("DELETE", path).status_code == 204
    assert world.get(path).status_code == 404


BAD_CLIENTS: list[tuple[dict[str, Any], str]] = [
    ({"name": ""}, "name"),
    ({"email": "nobody"}, "email"),
    ({"email": None}, "email"),
    ({"imap_port": 0}, "imap_port"),
    ({"imap_port": 70000}, "imap_port"),
    ({"imap_port": "993"}, "imap_port"),
    ({"imap_security": "ssl"}, "imap_security"),
    ({"imap_host": "a b"}, "imap_host"),
    ({"sync_interval": 0}, "sync_interval"),
    ({"is_sync_enabled": "yes"}, "is_sync_enabled"),
    ({"refused_logins": 0}, "refused_logins"),
    ({"tenant_id": "globex"}, "tenant_id"),
    ({"imap_host": None}, "imap_host"),
]


@pytest.mark.parametrize(("change", "named"), BAD_CLIENTS, ids=[str(case[0]) for case in BAD_CLIENTS])
def test_a_bad_account_is_refused_and_not_kept(shared_world: World, change: dict[str, Any], named: str) -> None:
    before = shared_world.count(EmailClient)
    answer = shared_world.post("/api/email/clients", json=NEW | change, headers=ANN)
    assert answer.status_code == 422, answer.text
    assert named in answer.json()["detail"]
    assert "hunter2" not in answer.text
    assert shared_world.count(EmailClient) == before


def test_an_account_needs_a_user_and_a_tenant(world: World) -> None:
    assert "X-User-Id" in world.post("/api/email/clients", json=NEW).json()["detail"]
    assert world.post("/api/email/clients", world.admin_key, json=NEW).status_code == 403
    assert world.post("/api/email/clients", world.ann_key, json=NEW).status_code == 201


@pytest.mark.parametrize("change", [{"name": None}, {"sync_interval": None}, {"is_sync_enabled": None}])
def test_null_clears_only_what_can_be_empty(world: World, change: dict[str, Any]) -> None:
    answer = world.call("PATCH", f"/api/email/clients/{world.acme.client_id}", json=change)
    assert answer.status_code == 422
    assert "null" in answer.json()["detail"]


def test_an_account_with_a_live_sync_is_not_deleted(world: World) -> None:
    options = {"uniqueKey": f"sync:{world.acme.client_id}"}
    world.post("/api/tasks", json={"task": "sync_emails", "args": {"email_client_id": world.acme.client_id}, "options": options})
    assert world.call("DELETE", f"/api/email/clients/{world.acme.client_id}").status_code == 409


def test_folders_and_messages_of_an_account(world: World) -> None:
    folders = world.get(f"/api/email/clients/{world.acme.client_id}/folders").json()["items"]
    assert [(folder["name"], folder["role"]) for folder in folders] == [("INBOX", "inbox")]
    (message,) = world.get(f"/api/email/messages?client_id={world.acme.client_id}&folder_id={world.acme.folder_id}&q=hello").json()["items"]
    assert (message["subject"], message["from"]["name"], message["attachmentCount"]) == ("Hello acme", "Bob", 0)
    assert "bodyText" not in message
    assert world.get("/api/email/messages?q=nothing%25").json()["items"] == []
    assert world.get(f"/api/email/messages?client_id={world.globex.client_id}").status_code == 404
    assert world.get(f"/api/email/messages?folder_id={world.globex.folder_id}").json()["items"] == []


def test_one_message_comes_with_its_text_and_attachments(world: World) -> None:
    with world.system() as session:
        session.add(
            EmailAttachment(tenant_id=world.acme.tenant_id, email_id=world.acme.message_id, filename="a.pdf", content_type="x/y", size=3)
        )
    message = world.get(f"/api/email/messages/{world.acme.message_id}").json()
    assert (message["bodyText"], message["attachments"][0]["filename"]) == ("Good day", "a.pdf")
    assert world.get(f"/api/email/messages/{world.acme.message_id}", world.ann_key).json()["attachmentCount"] == 1


def test_messages_are_paged_newest_first_also_without_a_date(world: World) -> None:
    moment = now()
    with world.system() as session:
        for number in range(4):
            row = session.get(EmailMessage, world.acme.message_id)
            fields = {c.key: getattr(row, c.key) for c in EmailMessage.__mapper__.column_attrs if c.key not in {"id", "uid", "created_at"}}
            dated = None if number == 3 else moment - timedelta(days=number + 1)
            session.add(EmailMessage(**(fields | {"uid": 10 + number, "internal_date": dated, "subject": f"m{number}"})))
    seen: list[str] = []
    cursor = ""
    while cursor is not None:
        page = world.get(f"/api/email/messages?limit=2&cursor={cursor}").json()
        seen += [item["subject"] for item in page["items"]]
        cursor = page["nextCursor"]
    assert seen == ["m3", "Hello acme", "m0", "m1", "m2"]


def stored(world: World, *raws: bytes, keep_source: bool = True) -> list[EmailMessage]:
    """Messages of acme's account as a sync stores them."""
    with world.as_tenant(world.acme) as session:
        first = 100 + session.query(EmailMessage).count()
        new = [FetchedMessage(first + n, frozenset(), now(), len(raw), parse_message(raw), raw) for n, raw in enumerate(raws)]
        batch = SyncBatch(RemoteFolder("INBOX", "INBOX"), 1, False, new, [], [], FolderCursor(1, 999, None), len(new), len(new))
        EmailMessages(session).store(world.acme.client_id, batch, keep_source=keep_source)
        session.commit()
        return list(session.scalars(select(EmailMessage).where(EmailMessage.uid >= first).order_by(EmailMessage.uid)))


def page(world: World, query: str) -> list[str]:
    answer = world.get(f"/api/email/messages?{query}")
    assert answer.status_code == 200, answer.text
    return [item["subject"] for item in answer.json()["items"]]


def test_a_conversation_and_words_are_looked_for(world: World) -> None:
    root = b"Message-ID: <r@x>\r\nSubject: plans\r\nFrom: Zoe <zoe@x.test>\r\n\r\nfirst words\r\n"
    reply = b"Message-ID: <a@x>\r\nIn-Reply-To: <r@x>\r\nSubject: answer\r\n\r\nother words\r\n"
    first, second = stored(world, root, reply)
    item = world.get(f"/api/email/messages/{first.id}").json()
    assert item["threadId"] == first.thread_id == second.thread_id
    assert sorted(page(world, f"thread={first.thread_id}")) == ["answer", "plans"]
    assert page(world, f"thread={world.acme.message_id}") == page(world, "thread=x") == []
    assert sorted(page(world, "q=words")) == ["answer", "plans"]
    assert page(world, "q=zoe+fir") == ["plans"]
    assert page(world, "q=hello") == ["Hello acme"]
    assert len(page(world, "q=")) == 3
    assert page(world, "q=%22+OR+1%3D1+--") == []
    assert page(world, "q=" + "x" * 10_000) == []
    assert world.get("/api/email/messages?q=" + "x" * 10_001).status_code == 422
    assert world.get("/api/email/messages?q=words", world.globex.key).json()["items"] == []
    assert world.get(f"/api/email/messages?thread={first.thread_id}", world.globex.key).json()["items"] == []


FILES = (
    b"Message-ID: <f@x>\r\nSubject: files\r\nContent-Type: multipart/mixed; boundary=b\r\n\r\n--b\r\n\r\nhi\r\n"
    b'--b\r\nContent-Type: text/html; name="evil.html"\r\nContent-Disposition: inline\r\n\r\n<script>alert(1)</script>\r\n'
    b"--b\r\nContent-Type: application/pdf\r\nContent-Disposition: attachment; filename*=utf-8''R%C3%A9%22%0D%0AX-Evil%3A1.pdf\r\n"
    b"Content-Transfer-Encoding: base64\r\n\r\nQUJD\r\n--b--\r\n"
)


def test_a_file_and_the_source_are_downloads_and_never_pages(world: World) -> None:
    (message,) = stored(world, FILES)
    path = f"/api/email/messages/{message.id}"
    html, pdf = world.get(path).json()["attachments"]
    answer = world.get(f"{path}/attachments/{html['id']}")
    assert (answer.status_code, answer.content, answer.headers["content-type"]) == (
        200,
        b"<script>alert(1)</script>",
        "application/octet-stream",
    )
    assert answer.headers["content-disposition"].startswith('attachment; filename="evil.html"')
    assert (answer.headers["x-content-type-options"], answer.headers["cache-control"]) == ("nosniff", "no-store")
    assert "sandbox" in answer.headers["content-security-policy"]
    answer = world.get(f"{path}/attachments/{pdf['id']}")
    assert (answer.content, answer.headers["content-type"]) == (b"ABC", "application/pdf")
    assert "x-evil" not in answer.headers
    assert answer.headers["content-disposition"].isascii()
    whole = world.get(f"{path}/source")
    assert (whole.content, whole.headers["content-type"]) == (FILES, "message/rfc822")
    assert whole.headers["content-disposition"].startswith("attachment; ")
    for key in (world.globex.key, None):
        for each in (f"{path}/source", f"{path}/attachments/{pdf['id']}"):
            assert world.get(each, key).status_code == (401 if key is None else 404)
    assert world.get(f"/api/email/messages/{world.acme.message_id}/attachments/{pdf['id']}").status_code == 404
    assert world.get(f"{path}/attachments/x").status_code == 404


def test_what_was_not_kept_is_asked_of_the_mail_server(world: World) -> None:
    (message,) = stored(world, FILES, keep_source=False)
    path = f"/api/email/messages/{message.id}"
    pdf = world.get(path).json()["attachments"][1]
    asked: list[tuple[object, ...]] = []

    def fetch(client_id: str, folder: str, uid_validity: int, uid: int) -> bytes | None:
        asked.append((client_id, folder, uid_validity, uid, current_identity().tenant_id))
        with session_scope(engine=world.engine) as session:  # no transaction is open
            session.execute(select(1))
        return FILES

    answer = world.get(f"{path}/source")
    assert (answer.status_code, answer.json()["type"]) == (503, "urn:mailroom:problem:unavailable")
    world.app.state.fetch_source = fetch
    assert world.get(f"{path}/source").content == FILES
    assert world.get(f"{path}/attachments/{pdf['id']}").content == b"ABC"
    assert asked == [(world.acme.client_id, "INBOX", 1, message.uid, world.acme.tenant_id)] * 2
    assert world.get(f"{path}/source", world.globex.key).status_code == 404
    assert len(asked) == 2


@pytest.mark.parametrize(
    ("fails", "status"),
    [
        (TransientError("host secret.test", retry_after=7), 503),
        (Snooze(7), 503),
        (PermanentError("user ann"), 409),
        (None, 409),
        (ValueError("x"), 500),
    ],
)
def test_a_server_that_does_not_give_it_is_told_in_one_sentence(world: World, fails: Exception | None, status: int) -> None:
    (message,) = stored(world, FILES, keep_source=False)

    def fetch(*_: object) -> bytes | None:
        if fails is not None:
            raise fails
        return None

    world.app.state.fetch_source = fetch
    answer = world.get(f"/api/email/messages/{message.id}/source")
    assert (answer.status_code, answer.headers["content-type"]) == (status, "application/problem+json")
    assert "secret" not in answer.text
    assert "user ann" not in answer.text
    assert status != 503 or answer.headers["retry-after"] == "7"


def test_the_outbox_is_listed_and_shown_with_its_recipients(world: World) -> None:
    (email,) = world.get("/api/outbound-emails").json()["items"]
    assert (email["status"], email["from"], email["nextRetryAt"]) == ("pending", "ann@acme.test", None)
    whole = world.get(f"/api/outbound-emails/{email['id']}").json()
    (recipient,) = whole["recipients"]
    assert (recipient["address"], recipient["status"], recipient["replyCode"]) == ("bob@example.test", "pending", None)
    assert world.get("/api/outbound-emails?status=sent").json()["items"] == []
    assert world.get("/api/outbound-emails?status=lost").status_code == 422
    with world.system() as session:
        fields = {
            "tenant_id": world.acme.tenant_id,
            "client_id": world.acme.client_id,
            "message_id": "<2@x>",
            "sender": "a@b",
            "source": b"",
        }
        session.add(OutboundEmail(**fields))
    first = world.get("/api/outbound-emails?limit=1").json()
    second = world.get(f"/api/outbound-emails?limit=1&cursor={first['nextCursor']}").json()
    assert {first["items"][0]["messageId"], second["items"][0]["messageId"]} == {"<1@x>", "<2@x>"}
    assert second["nextCursor"] is None


def upload(world: World, name: str = "report.pdf", content: bytes = b"%PDF", key: str = "", **options: Any) -> Any:
    return world.post("/api/email/attachments", key, files={"file": (name, content, options.pop("kind", "application/pdf"))}, **options)


def files_of(world: World) -> list[Path]:
    return [path for path in world.settings.files.rglob("*") if path.is_file()] if world.settings.files.exists() else []


def test_an_upload_is_kept_under_a_name_of_ours(world: World) -> None:
    answer = upload(world, "../../etc/pass\u202ewd", headers=ANN)
    assert answer.status_code == 201, answer.text
    body = answer.json()
    assert body == {"id": body["id"], "filename": "passwd", "contentType": "application/pdf", "size": 4}
    (path,) = files_of(world)
    assert path.parent.name == world.acme.tenant_id
    assert path.read_bytes() == b"%PDF"
    assert path.stat().st_mode & 0o777 == 0o600
    with world.system() as session:
        row = session.get(EmailAttachment, body["id"])
        assert (row.stored_filename, row.user_id) == (path.name, world.acme.user_id)
    sent = world.post(
        "/api/email/send", json={"email_client_id": world.acme.client_id, "to": ["a@b.test"], "attachment_ids": [body["id"]]}, headers=ANN
    )
    assert sent.status_code == 202
    foreign = {"email_client_id": world.globex.client_id, "to": [], "attachment_ids": [body["id"]]}
    assert world.post("/api/email/send", world.globex.key, json=foreign).status_code == 404


def test_what_is_no_upload_leaves_no_file(world: World) -> None:
    assert world.post("/api/email/attachments", json={}).status_code == 415
    assert world.post("/api/email/attachments", files={"other": b"x"}).status_code == 422
    assert world.post("/api/email/attachments", files=[("file", b"x"), ("file", b"y")]).status_code == 400
    assert world.post("/api/email/attachments", content=b"x", headers={"Content-Type": "multipart/form-data"}).status_code == 400
    assert upload(world, key=world.admin_key).status_code == 403
    assert upload(world, content=b"x" * (25 * 2**20 + 20_000)).status_code == 413
    assert upload(world, content=b"x" * (25 * 2**20 + 1)).status_code == 413
    assert files_of(world) == []
    assert world.count(EmailAttachment) == 0


def test_a_file_without_its_row_is_removed(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object, **__: object) -> None:
        raise RuntimeError

    monkeypatch.setattr("api.routes.attachments.Attachments.add", broken)
    assert upload(world).status_code == 500
    assert files_of(world) == []


def test_a_strange_content_type_becomes_a_plain_one(world: World) -> None:
    assert upload(world, kind="text/html; <script>").json()["contentType"] == "application/octet-stream"


@pytest.mark.parametrize(
    ("given", "kept"), [("", "file"), ("..", "file"), ("C:\\a\\b.txt", "b.txt"), ("x\r\ny", "xy"), ("é" * 300, "é" * 255)]
)
def test_file_names_are_only_data(given: str, kept: str) -> None:
    assert safe_filename(given) == kept


def test_queues_workers_and_schedules(world: World) -> None:
    run_id = world.add()
    queues = world.get("/api/queues").json()["items"]
    assert [queue["name"] for queue in queues][:2] == ["sync", "periodic"]
    default = next(queue for queue in queues if queue["name"] == "default")
    assert (default["waiting"], default["priority"], default["retries"]) == (1, 5, 3)
    assert default["oldestWaitSeconds"] >= 0
    world.set_run(run_id, state="STARTED", worker_id="w1")
    with world.system() as session:
        session.add(WorkerProcess(id="w1", host="h", pid=1, threads=8, queues=["default"]))
        session.add(Schedule(task="periodic_sync", cron="*/5 * * * *", checked_until=now()))
        session.add(ScheduleTick(task="periodic_sync", minute=now().replace(second=0, microsecond=0), run_id=run_id))
    (worker,) = world.get("/api/workers").json()["items"]
    assert (worker["id"], worker["threads"], worker["busyThreads"]) == ("w1", 8, 1)
    (schedule,) = world.get("/api/schedules").json()["items"]
    assert (schedule["task"], schedule["isPaused"], schedule["lastTaskId"]) == ("periodic_sync", False, None)
    assert schedule["lastTickAt"].endswith("Z")
    assert world.get("/api/schedules", world.admin_key).json()["items"][0]["lastTaskId"] == run_id


def test_the_cheap_probes_look_at_nothing(world: World) -> None:
    assert world.get("/health", None).json()["status"] == "ok"
    assert world.get("/health/live", None).json() == {"status": "ok"}


def test_ready_is_503_without_a_broker_and_200_with_one(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    answer = world.get("/health/ready", None)
    assert (answer.status_code, answer.json()) == (503, {"status": "down", "database": "ok", "rabbitmq": "off", "redis": "down"})
    monkeypatch.setattr(runs.health, "probe_redis", lambda _url, _seconds: None)
    world.app.state.health = Health(world.settings, world.engine)
    assert world.get("/health/ready", None).status_code == 200
    world.app.state.stopping.set()
    assert world.get("/health/ready", None).status_code == 503


def test_the_system_tenant_is_no_tenant_for_callers(world: World) -> None:
    assert world.get("/api/tasks", headers={"X-Tenant-Id": SYSTEM_TENANT}).status_code == 403
