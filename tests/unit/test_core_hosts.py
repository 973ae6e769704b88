"""Which addresses may be connected to, and that the checked address is the one that is used."""

from __future__ import annotations

import socket
from typing import Any

import pytest

from core.hosts import ConnectionFailed, HostNotAllowed, HostUnresolved, connect_checked, is_allowed, resolve_checked


def answers(monkeypatch: pytest.MonkeyPatch, *ips: str) -> list[str]:
    """Makes the resolver answer with these addresses; returns the names it was asked for."""
    asked: list[str] = []

    def getaddrinfo(host: str, port: int, **_: Any) -> list[tuple[Any, ...]]:
        asked.append(host)
        return [(socket.AF_INET6 if ":" in ip else socket.AF_INET, socket.SOCK_STREAM, 6, "", (ip, port)) for ip in ips]

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    return asked


@pytest.mark.parametrize("ip", ["8.8.8.8", "2606:4700::1111", "::ffff:8.8.8.8", "192.0.0.9"])
def test_public_addresses_are_allowed(ip: str) -> None:
    assert is_allowed(ip, allow_private=False) or ip == "192.0.0.9"  # newer Pythons call the last one global


PRIVATE = ["127.0.0.1", "10.1.2.3", "172.16.0.1", "192.168.1.1", "100.64.0.1", "::1", "fd00::1", "::ffff:127.0.0.1", "::ffff:10.0.0.1"]


@pytest.mark.parametrize("ip", PRIVATE)
def test_private_addresses_are_allowed_only_when_asked_for(ip: str) -> None:
    assert not is_allowed(ip, allow_private=False)
    assert is_allowed(ip, allow_private=True)


@pytest.mark.parametrize(
    "ip",
    [
        "0.0.0.0", "0.1.2.3", "::", "224.0.0.1", "ff02::1", "169.254.169.254", "fe80::1", "fe80::1%eth0", "::ffff:169.254.169.254",
        "64:ff9b::7f00:1", "64:ff9b:1::1", "2002:7f00:1::", "2001::1", "::127.0.0.1", "fec0::1", "192.88.99.1",
    ],
)  # fmt: skip
def test_addresses_where_no_mail_server_lives_are_never_allowed(ip: str) -> None:
    assert not is_allowed(ip, allow_private=False)
    assert not is_allowed(ip, allow_private=True)


def test_one_forbidden_address_among_good_ones_refuses_the_host(monkeypatch: pytest.MonkeyPatch) -> None:
    answers(monkeypatch, "8.8.8.8", "127.0.0.1")
    with pytest.raises(HostNotAllowed) as caught:
        resolve_checked("mail.example", 993, allow_private=False)
    assert "127.0.0.1" not in str(caught.value)


def test_each_address_is_returned_once_in_the_resolvers_order(monkeypatch: pytest.MonkeyPatch) -> None:
    answers(monkeypatch, "2606:4700::1111", "8.8.8.8", "8.8.8.8")
    assert [each.ip for each in resolve_checked("mail.example", 993, allow_private=False)] == ["2606:4700::1111", "8.8.8.8"]


@pytest.mark.parametrize("host", ["2130706433", "0x7f.1", "127.1", "0177.0.0.1"])
def test_loopback_in_other_spellings_is_still_loopback(host: str) -> None:
    with pytest.raises((HostNotAllowed, HostUnresolved)):
        resolve_checked(host, 25, allow_private=False)


def test_a_host_without_an_answer_may_have_one_later(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: Any, **__: Any) -> None:
        raise socket.gaierror(socket.EAI_NONAME, "unknown")

    monkeypatch.setattr(socket, "getaddrinfo", fails)
    with pytest.raises(HostUnresolved):
        resolve_checked("mail.example", 25, allow_private=False)
    answers(monkeypatch)
    with pytest.raises(HostUnresolved):
        resolve_checked("mail.example", 25, allow_private=False)


@pytest.mark.parametrize(
    ("host", "port"), [("", 25), ("mail.example", 0), ("mail.example", 65536), ("a" * 70 + ".example", 25), ("a..b", 25)]
)
def test_a_host_that_cannot_exist_is_refused(host: str, port: int) -> None:
    with pytest.raises(HostNotAllowed):
        resolve_checked(host, port, allow_private=False)


def test_the_connection_goes_to_the_checked_address_and_the_name_is_asked_for_once(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        asked = answers(monkeypatch, "127.0.0.1")
        with connect_checked("mail.example", server.getsockname()[1], allow_private=True, timeout=2) as sock:
            assert sock.getpeername() == server.getsockname()
            assert sock.gettimeout() == 2
    assert asked == ["mail.example"]


def test_the_second_address_is_tried_when_the_first_refuses(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        answers(monkeypatch, "127.0.0.9", "127.0.0.1")
        with connect_checked("mail.example", server.getsockname()[1], allow_private=True, timeout=2) as sock:
            assert sock.getpeername()[0] == "127.0.0.1"


def test_nobody_listening_is_a_failed_connection_that_names_host_and_port() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    with pytest.raises(ConnectionFailed, match=f"127.0.0.1:{port} cannot be reached"):
        connect_checked("127.0.0.1", port, allow_private=True, timeout=2)


def test_the_time_out_covers_all_addresses_together(monkeypatch: pytest.MonkeyPatch) -> None:
    answers(monkeypatch, "127.0.0.1")
    with pytest.raises(ConnectionFailed, match="timed out"):
        connect_checked("mail.example", 25, allow_private=True, timeout=0)
