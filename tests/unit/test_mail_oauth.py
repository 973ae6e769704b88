"""How a token is refreshed: what is asked, whom, and what each answer means."""

from __future__ import annotations

import json
import socket
import ssl
from collections.abc import Mapping
from pathlib import Path
from urllib.parse import parse_qs

import pytest

from core.errors import InvalidInputError, MailroomError
from core.hosts import Address
from mail.accounts import Secret
from mail.errors import (
    AuthenticationRefused,
    CertificateRefused,
    ConnectionFailed,
    HostNotAllowed,
    MailboxProtocolError,
    ServerThrottled,
    ServerUnavailable,
)
from mail.oauth import Token, refresh
from tests.servers.certificate import write_self_signed
from tests.unit.scripted_server import HANG_UP, ScriptedServer


def answering(status: str, body: bytes | Mapping[str, object], *headers: str) -> ScriptedServer:
    """A server that reads the request's first line and answers at once."""
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    lines = [f"HTTP/1.1 {status}", f"Content-Length: {len(data)}", *headers]
    return ScriptedServer(("^POST /token ", "\r\n".join(lines).encode() + b"\r\n\r\n" + data))


def refreshed(server: ScriptedServer, *, client_secret: Secret | None = None, timeout: float = 2) -> Token:
    with server:
        url = f"http://{server.host}:{server.port}/token"
        return refresh(url, "the-client", client_secret, Secret("r3fresh"), allow_private=True, timeout=timeout)


def error_of(server: ScriptedServer, **options: float) -> MailroomError:
    with pytest.raises(MailroomError) as caught:
        refreshed(server, **options)  # type: ignore[arg-type]
    assert not any(secret in str(caught.value) for secret in ("r3fresh", "s3cret", "jo@x"))
    return caught.value


def test_a_refresh_token_becomes_an_access_token() -> None:
    server = answering("200 OK", {"access_token": "t0ken", "expires_in": 1800, "refresh_token": "next"})
    token = refreshed(server, client_secret=Secret("s3cret"))
    assert token == Token(Secret("t0ken"), 1800.0, Secret("next"))
    assert not any(secret in repr(token) for secret in ("t0ken", "next"))
    sent = b"".join(server.lines).decode()
    head, _, form = sent.partition("\r\n\r\n")
    assert f"host: {server.host}:{server.port}" in head.lower()
    assert parse_qs(form) == {
        "grant_type": ["refresh_token"], "client_id": ["the-client"], "refresh_token": ["r3fresh"], "client_secret": ["s3cret"],
    }  # fmt: skip


@pytest.mark.parametrize(("expires", "seconds"), [(None, 3600.0), ("3599", 3599.0), ("soon", 3600.0), (-5, 3600.0), (1e300, 3600.0)])
def test_a_strange_lifetime_becomes_the_usual_one(expires: object, seconds: float) -> None:
    assert refreshed(answering("200 OK", {"access_token": "t", "expires_in": expires})) == Token(Secret("t"), seconds, None)


@pytest.mark.parametrize(
    ("status", "body", "kind"),
    [
        ("400 Bad Request", {"error": "invalid_grant", "error_description": "jo@x revoked it"}, AuthenticationRefused),
        ("401 Unauthorized", {"error": "invalid_client"}, AuthenticationRefused),
        ("400 Bad Request", {"error": "temporarily_unavailable"}, ServerUnavailable),
        ("400 Bad Request", {"error": "invalid_request"}, MailboxProtocolError),
        ("429 Too Many Requests", {"error": "invalid_grant"}, ServerThrottled),
        ("503 Unavailable", b"<html>", ServerUnavailable),
        ("302 Found", b"", MailboxProtocolError),
        ("200 OK", b"<html>", MailboxProtocolError),
        ("200 OK", b"[" * 5000, MailboxProtocolError),
        ("200 OK", {"access_token": ""}, MailboxProtocolError),
        ("200 OK", {"access_token": "a\r\nb"}, MailboxProtocolError),
        ("200 OK", {"access_token": "t", "padding": "x" * 100_000}, MailboxProtocolError),
    ],
)
def test_an_answer_without_a_token_is_named_by_what_it_means(status: str, body: bytes, kind: type[MailroomError]) -> None:
    assert type(error_of(answering(status, body, "Location: http://127.0.0.1:1/elsewhere"))) is kind


def test_a_throttled_refresh_says_when_to_come_back() -> None:
    error = error_of(answering("429 Too Many Requests", b"", "Retry-After: 30"))
    assert isinstance(error, ServerThrottled)
    assert error.retry_after == 30


def test_a_server_that_is_gone_or_silent_is_transient() -> None:
    assert isinstance(error_of(ScriptedServer(("^POST", HANG_UP))), ConnectionFailed)
    assert isinstance(error_of(ScriptedServer(("^POST", b"HTTP/1.1 200 OK\r\n")), timeout=0.3), ConnectionFailed)


def test_a_certificate_nobody_signed_is_refused_for_good(tmp_path: Path) -> None:
    certificate, key = tmp_path / "certificate.pem", tmp_path / "key.pem"
    write_self_signed(certificate, key)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    with ScriptedServer(("^POST", b""), tls=context, tls_at_once=True) as server, pytest.raises(CertificateRefused):
        refresh(f"https://localhost:{server.port}/token", "c", None, Secret("r3fresh"), allow_private=True, timeout=2)
    assert server.lines == []


@pytest.mark.parametrize("url", ["ftp://x.test/", "http:///token", "https://", "no url", "https://jo:pw@x.test/", "https://[::1/"])
def test_an_unusable_url_is_refused(url: str) -> None:
    with pytest.raises(InvalidInputError):
        refresh(url, "c", None, Secret("r"), allow_private=True)


def test_the_address_that_was_judged_is_the_one_that_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    server = answering("200 OK", {"access_token": "t"})
    judged = Address(socket.AF_INET, server.host, server.port)
    monkeypatch.setattr("mail.oauth.resolve_checked", lambda *_given, **_named: [judged])
    with server:
        refresh(f"http://login.example:{server.port}/token", "c", None, Secret("r"), allow_private=True, timeout=2)
    assert f"host: login.example:{server.port}\r\n".encode() in b"".join(server.lines).lower()


def test_only_https_to_public_hosts_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("httpx.Client", None)
    with pytest.raises(InvalidInputError):
        refresh("http://mail.example/token", "c", None, Secret("r"), allow_private=False)
    for host in ("127.0.0.1", "169.254.169.254", "[::1]", "10.0.0.1"):
        with pytest.raises(HostNotAllowed):
            refresh(f"https://{host}/token", "c", None, Secret("r"), allow_private=False)
