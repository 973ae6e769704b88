"""Webhooks on the wire: signatures that the reference library accepts, and real servers of the unfriendly kind."""

from __future__ import annotations

import base64
import http.server
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from typing import Any

import pytest
from standardwebhooks import Webhook, WebhookVerificationError

from core.errors import InvalidInputError
from core.hosts import Address
from runs.webhooks import posting
from runs.webhooks.posting import Answer, check_url, post
from runs.webhooks.signature import headers_of, key_of, new_secret

BODY = b'{"type":"task.succeeded","timestamp":"2026-03-01T12:00:00Z","data":{}}'
Handler = http.server.BaseHTTPRequestHandler


@dataclass
class Receiver:
    """A real HTTP server; each path behaves in its own way."""

    port: int = 0
    seen: list[tuple[str, dict[str, str], bytes]] = field(default_factory=list)
    behave: Callable[[Handler], None] = lambda handler: answer(handler, 204)

    def url(self, host: str = "127.0.0.1", path: str = "/hook?x=1") -> str:
        return f"http://{host}:{self.port}{path}"


def answer(handler: Handler, status: int, body: bytes = b"", **headers: str) -> None:
    handler.send_response(status)
    for name, value in {"Content-Length": str(len(body)), **headers}.items():
        handler.send_header(name.replace("_", "-"), value)
    handler.end_headers()
    handler.wfile.write(body)


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    found = Receiver()

    class Hears(Handler):
        def do_POST(self) -> None:  # noqa: N802  (the server's own name for it)
            body = self.rfile.read(int(self.headers["Content-Length"]))
            found.seen.append((self.path, {name.lower(): value for name, value in self.headers.items()}, body))
            try:
                found.behave(self)
            except OSError:
                pass  # the caller has gone

        def log_message(self, *_: Any) -> None: ...

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hears) as server:
        server.daemon_threads = True
        found.port = server.server_address[1]
        threading.Thread(target=server.serve_forever, daemon=True, kwargs={"poll_interval": 0.01}).start()
        yield found
        server.shutdown()


def send(receiver: Receiver, **changes: Any) -> Answer:
    return post(changes.pop("url", receiver.url()), BODY, headers_of("e1", int(time.time()), BODY, [new_secret()]), allow_private=True)


# Signatures.


def test_the_reference_library_accepts_what_arrives(receiver: Receiver) -> None:
    secrets = [new_secret(), new_secret()]
    headers = headers_of("0190-abc", int(time.time()), BODY, secrets)
    found = post(receiver.url(), BODY, headers, allow_private=True)
    assert (found.code, found.error, found.is_good) == (204, None, True)
    path, got, body = receiver.seen[0]
    assert (path, got["content-type"], got["host"]) == ("/hook?x=1", "application/json", f"127.0.0.1:{receiver.port}")
    for secret in secrets:  # during a rotation either will do
        assert Webhook(secret).verify(body, got) == json.loads(BODY)
    with pytest.raises(WebhookVerificationError):
        Webhook(new_secret()).verify(body, got)
    with pytest.raises(WebhookVerificationError):
        Webhook(secrets[0]).verify(body + b" ", got)


def test_a_signature_is_the_specification_s_own_example() -> None:
    secret = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
    headers = headers_of("msg_p5jXN8AQM9LWM0D4loKWxJek", 1614265330, b'{"test": 2432232314}', [secret])
    assert headers["webhook-signature"] == "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="


@pytest.mark.parametrize(
    "secret", ["", "whsec_", "whsec_abc", "whsec_" + base64.b64encode(b"x" * 23).decode(), base64.b64encode(b"x" * 32).decode()]
)
def test_other_text_is_no_secret(secret: str) -> None:
    with pytest.raises(InvalidInputError, match="whsec_"):
        key_of(secret)


def test_a_secret_is_new_each_time() -> None:
    assert len(key_of(new_secret())) == 32
    assert new_secret() != new_secret()


# Servers.


@pytest.mark.parametrize("status", [400, 404, 410, 500, 503])
def test_a_refusal_is_told_with_how_its_answer_began(receiver: Receiver, status: int) -> None:
    receiver.behave = lambda handler: answer(handler, status, b"no\x00\n way" + b"y" * 5000)
    found = send(receiver)
    assert (found.code, found.error, found.is_good) == (status, f"The address answered {status}.", False)
    assert found.text.startswith("no   way")
    assert len(found.text) == posting.KEPT_CHARACTERS


def test_a_redirect_is_not_followed_wherever_it_leads(receiver: Receiver) -> None:
    receiver.behave = lambda handler: answer(handler, 302, Location=receiver.url(path="/inside"))
    found = send(receiver)
    assert (found.code, found.error) == (302, "The address answered 302; redirects are not followed.")
    assert [path for path, _, _ in receiver.seen] == ["/hook?x=1"]


def test_an_endless_answer_is_not_read(receiver: Receiver) -> None:
    ended = threading.Event()

    def flood(handler: Handler) -> None:
        handler.send_response(200)
        handler.end_headers()
        try:
            for _ in range(2000):
                handler.wfile.write(b"x" * 65536)
        finally:
            ended.set()

    receiver.behave = flood
    found = send(receiver)
    assert found.is_good
    assert len(found.text) == posting.KEPT_CHARACTERS
    assert ended.wait(20)  # the connection was closed over it


def test_a_server_that_says_nothing_is_not_waited_for(receiver: Receiver, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(posting, "WAIT_SECONDS", 0.2)
    gate = threading.Event()

    def hold(_handler: Handler) -> None:
        gate.wait(20)

    receiver.behave = hold
    assert send(receiver).error == "The address did not answer in time."
    gate.set()


def test_a_server_that_drips_is_not_waited_for_either(receiver: Receiver, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(posting, "TOTAL_SECONDS", 0.5)

    def drip(handler: Handler) -> None:
        handler.wfile.write(b"HTTP/1.1 200 OK\r\n")
        for number in range(400):
            handler.wfile.write(f"X-{number}: y\r\n".encode())
            handler.wfile.flush()
            time.sleep(0.05)

    receiver.behave = drip
    found = send(receiver)
    assert (found.code, found.error) == (None, "The answer took longer than 0 s.")


def test_what_is_no_web_server_and_nobody_at_all(receiver: Receiver) -> None:
    receiver.behave = lambda handler: handler.wfile.writelines([b"220 mail.example ESMTP\r\n"])
    assert (send(receiver).error or "").startswith("The address did not answer as a web server does")
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    assert send(receiver, url=f"http://127.0.0.1:{port}/").error == "The connection was refused or is not possible."
    assert "cannot be resolved" in (send(receiver, url="http://nowhere.invalid/").error or "")
    found = send(receiver, url=receiver.url().replace("http://", "https://"))
    assert found.error == "The connection's certificate or encryption is not good."


@pytest.mark.parametrize(("value", "seconds"), [("120", 120), ("soon", None), ("", None), ("a date", 500)])
def test_a_wish_to_wait_is_read_in_either_form(receiver: Receiver, value: str, seconds: float | None) -> None:
    wish = format_datetime(datetime.now(UTC) + timedelta(seconds=500)) if value == "a date" else value
    receiver.behave = lambda handler: answer(handler, 503, Retry_After=wish)
    found = send(receiver).retry_after
    assert found is None if seconds is None else found is not None and seconds - 60 <= found <= seconds


# Private addresses.


def test_a_private_address_is_refused_and_never_connected_to(receiver: Receiver) -> None:
    url = receiver.url("localhost").replace("http://", "https://")
    assert post(url, BODY, {}, allow_private=False).error == "url leads to a private address."
    assert receiver.seen == []


def test_a_name_that_leads_inside_is_refused_when_it_is_resolved(receiver: Receiver, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(socket, "getaddrinfo", lambda host, port, **_: [(socket.AF_INET, 1, 6, "", ("127.0.0.1", port))])
    found = post(f"https://hooks.example:{receiver.port}/", BODY, {}, allow_private=False)
    assert found.error == f"Connections to hooks.example:{receiver.port} are not allowed."
    assert receiver.seen == []


def test_the_connection_goes_to_the_judged_address_whatever_the_name_server_says_next(
    receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    judged = [Address(socket.AF_INET, "127.0.0.9", receiver.port), Address(socket.AF_INET, "127.0.0.1", receiver.port)]
    monkeypatch.setattr(posting, "resolve_checked", lambda *_, **__: judged)  # nobody listens on the first
    monkeypatch.setattr(socket, "getaddrinfo", _only_numbers(socket.getaddrinfo))
    found = post(receiver.url("rebinds.example"), BODY, {}, allow_private=True)
    assert found.is_good
    assert receiver.seen[0][1]["host"] == f"rebinds.example:{receiver.port}"


def _only_numbers(resolve: Any) -> Any:
    def getaddrinfo(host: Any, *arguments: Any, **options: Any) -> Any:
        assert str(host if isinstance(host, str) else host.decode()).startswith("127."), f"{host} was resolved a second time"
        return resolve(host, *arguments, **options)

    return getaddrinfo


@pytest.mark.parametrize(
    ("url", "sentence"),
    [
        ("ftp://example.com/", "url must begin with https://."),
        ("http://example.com/", "url must begin with https://."),
        ("https://", "url is no web address"),
        ("https://exa mple.com/", "url is no web address"),
        ("https://example.com:99999/", "url is no web address"),
        ("https://[::1/", "url is no web address"),
        ("https://example.com/" + "x" * 2048, "url is no web address"),
        ("https://bücher.example/", "url is no web address"),
        ("https://user:pass@example.com/", "url has a user"),
        ("https://example.com/#top", "url has a user, a password or a fragment"),
        ("https://127.0.0.1/", "private"),
        ("https://10.0.0.1/", "private"),
        ("https://[::1]/", "private"),
        ("https://[::ffff:192.168.0.1]/", "private"),
        ("https://169.254.169.254/latest", "private"),
        ("https://localhost/", "private"),
        ("https://db.localhost/", "private"),
    ],
)
def test_a_url_that_cannot_be_is_refused_at_the_door(url: str, sentence: str) -> None:
    with pytest.raises(InvalidInputError, match=sentence):
        check_url(url, allow_private=False)


def test_a_good_url_is_kept_and_development_may_do_more() -> None:
    assert check_url("https://example.com:8443/hook?a=b", allow_private=False) == "https://example.com:8443/hook?a=b"
    assert check_url("http://127.0.0.1:8080/", allow_private=True)
    with pytest.raises(InvalidInputError, match="private"):
        check_url("http://169.254.169.254/", allow_private=True)
