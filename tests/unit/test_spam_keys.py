"""Keys of DKIM signatures: asked of a name server, remembered, and never a reason to wait or to judge."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime

import dns.rcode
import pytest

import actors.spam_rules
from core.errors import ConfigurationError
from core.settings import get_settings, load_settings, use_settings
from mail.dkim import PrivateKey, Signer, new_private_key
from mail.spam import key_records as keeping
from mail.spam.check import judge
from mail.spam.engines.engine import Breaker
from mail.spam.indicators import authentication
from mail.spam.key_records import KeyRecords, key_records
from mail.spam.verdict import Context
from tests.servers.dns import DnsServer
from tests.unit.spam_mail import letter

NAME = "s1._domainkey.baker.example"
SAID = {"dkim_valid", "dkim_invalid"}


class Names:
    """Answers from a table, fails for what is not in it, and counts."""

    def __init__(self, records: dict[str, tuple[bytes | None, float]]) -> None:
        self.records, self.asked, self.now = records, 0, 0.0

    def __call__(self, name: str) -> tuple[bytes | None, float]:
        self.asked += 1
        if name not in self.records:
            raise OSError
        return self.records[name]

    def keep(self, failures: int = 1_000_000) -> KeyRecords:
        return KeyRecords(self, Breaker(failures=failures, clock=lambda: self.now), clock=lambda: self.now)


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[DnsServer]:
    monkeypatch.setattr(keeping, "LOOKUP_SECONDS", 20.0)  # a slow machine is no silent server
    with DnsServer() as server:
        yield server
    key_records.cache_clear()


@pytest.fixture(params=["rsa-sha256", "ed25519-sha256"])
def key(request: pytest.FixtureRequest) -> PrivateKey:
    return new_private_key(request.param)


def signed(key: PrivateKey, domain: str = "baker.example") -> bytes:
    return Signer(domain, "s1", key).signed(letter(), datetime(2025, 1, 6, tzinfo=UTC))


def said(source: bytes, lookup: Callable[[str], bytes | None] | None) -> set[str]:
    """Without a limit in time, so that a slow machine leaves nothing out."""
    return {each.code for each in judge(source, Context(dkim_lookup=lookup), None, clock=lambda: 0.0).indicators} & SAID


# The whole way, over UDP.


def test_a_signature_is_verified_with_the_key_that_the_name_server_has(server: DnsServer, key: PrivateKey) -> None:
    server.records[NAME] = key.public_record().encode()
    lookup = key_records(server.address)
    assert said(signed(key), lookup) == {"dkim_valid"}
    assert said(signed(key).replace(b"Tuesday", b"Sunday "), lookup) == {"dkim_invalid"}
    assert server.asked == [NAME]


def test_the_key_of_another_kind_does_not_verify(server: DnsServer, key: PrivateKey) -> None:
    kind = "rsa-sha256" if b"k=ed25519" in key.public_record().encode() else "ed25519-sha256"
    server.records[NAME] = new_private_key(kind).public_record().encode()
    assert said(signed(key), key_records(server.address)) == {"dkim_invalid"}


@pytest.mark.parametrize("record", [b"v=DKIM1; k=ed25519; p=", b"v=DKIM2; k=ed25519; p=x", b"k=ed25519; p=AAAA", b"no record at all"])
def test_a_key_that_was_withdrawn_or_is_none_does_not_verify(server: DnsServer, record: bytes) -> None:
    server.records[NAME] = record
    assert said(signed(new_private_key("ed25519-sha256")), key_records(server.address)) == {"dkim_invalid"}


def test_what_is_not_known_says_nothing(server: DnsServer, key: PrivateKey) -> None:
    lookup = key_records(server.address)
    assert said(signed(key), lookup) == set()
    server.rcode = dns.rcode.SERVFAIL
    assert said(signed(key, "cook.example"), lookup) == set()
    assert lookup is not None
    assert lookup("a..b") is None
    assert lookup("a" * 64 + ".example") is None
    assert lookup("x" * 300) is None
    assert set(server.asked) == {NAME, "s1._domainkey.cook.example"}


def test_a_silent_name_server_is_waited_for_a_little_and_then_left_alone(server: DnsServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(keeping, "LOOKUP_SECONDS", 0.1)
    server.is_silent = True
    lookup = key_records(server.address)
    assert lookup is not None
    for number in range(10):
        assert lookup(f"s{number}._domainkey.baker.example") is None
    deadline = time.monotonic() + 20
    while len(set(server.asked)) < 3 and time.monotonic() < deadline:
        time.sleep(0.01)
    assert set(server.asked) == {f"s{number}._domainkey.baker.example" for number in range(3)}


@pytest.mark.parametrize(("server", "there"), [("999.0.0.1", False), ("[::1]:53", True), ("[::1]", True), ("192.0.2.53", True)])
def test_a_name_server_is_an_address(server: str, there: bool) -> None:
    assert (key_records(server) is not None) is there


# What is remembered.


def test_a_record_is_asked_for_once_in_its_time() -> None:
    names = Names({NAME: (b"v=DKIM1; p=x", 120.0)})
    keep = names.keep()
    assert {keep(NAME), keep(NAME.upper())} == {b"v=DKIM1; p=x"}
    assert names.asked == 1
    names.now = 121.0
    assert keep(NAME) == b"v=DKIM1; p=x"
    assert names.asked == 2


@pytest.mark.parametrize(("seconds", "kept"), [(0.0, keeping.SHORTEST), (1e9, keeping.LONGEST)])
def test_a_record_is_kept_neither_for_too_short_nor_for_too_long(seconds: float, kept: float) -> None:
    names = Names({NAME: (b"x", seconds)})
    keep = names.keep()
    for moment, asked in ((0.0, 1), (kept - 1, 1), (kept + 1, 2)):
        names.now = moment
        keep(NAME)
        assert names.asked == asked


@pytest.mark.parametrize(
    ("records", "kept"),
    [
        ({NAME: (None, 0.0)}, keeping.NO_RECORD_SECONDS),
        ({NAME: (b"x" * 5000, 9.0)}, keeping.NO_RECORD_SECONDS),
        ({}, keeping.FAILED_SECONDS),
    ],
)
def test_that_there_is_no_record_is_remembered_for_less_long(records: dict[str, tuple[bytes | None, float]], kept: float) -> None:
    names = Names(records)
    keep = names.keep()
    for moment, asked in ((0.0, 1), (kept - 1, 1), (kept + 1, 2)):
        names.now = moment
        assert keep(NAME) is None
        assert names.asked == asked


def test_only_so_many_records_are_kept_and_the_oldest_go(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(keeping, "MAX_RECORDS", 3)
    names = Names({f"k{number}.example": (b"x", 60.0) for number in range(5)})
    keep = names.keep()
    for number in range(5):
        keep(f"k{number}.example")
    keep("k4.example")
    assert names.asked == 5
    keep("k0.example")
    assert names.asked == 6


def test_a_name_server_that_failed_three_times_is_left_alone_and_asked_again_later() -> None:
    names = Names({NAME: (b"x", 60.0)})
    keep = names.keep(failures=3)
    for number in range(3):
        assert keep(f"k{number}.example") is None
    assert keep(NAME) is None
    assert names.asked == 3
    names.now = 31.0
    assert keep(NAME) == b"x"


# Within a message.


def test_of_many_signatures_three_are_looked_at() -> None:
    names = Names({})
    assert said(letter(DKIM_Signature=headers(20)), names.keep()) == set()
    assert names.asked == 3


def test_a_message_for_which_the_keys_took_their_time_is_asked_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    names = Names({})
    monkeypatch.setattr(authentication, "monotonic", lambda: names.now)

    def slow(name: str) -> bytes | None:
        names.now += authentication.SECONDS_FOR_KEYS * 0.6
        return names.keep()(name)

    assert said(letter(DKIM_Signature=headers(3)), slow) == set()
    assert names.asked == 2


def headers(count: int) -> str:
    each = "v=1; a=rsa-sha256; d=d{0}.example; s=s1; bh=AAAA; h=from; b=AAAA"
    return "\r\nDKIM-Signature: ".join(each.format(number) for number in range(count))


# The switch.


def test_nobody_is_asked_unless_the_operator_names_a_name_server(server: DnsServer) -> None:
    before = get_settings()
    try:
        use_settings(before.model_copy(update={"spam_dkim_dns": None}))
        assert actors.spam_rules.key_lookup() is None
        use_settings(before.model_copy(update={"spam_dkim_dns": server.address}))
        server.records[NAME] = b"v=DKIM1; p=x"
        lookup = actors.spam_rules.key_lookup()
        assert lookup is not None
        assert lookup(NAME) == b"v=DKIM1; p=x"
        assert actors.spam_rules.key_lookup() is lookup
    finally:
        use_settings(before)
    assert load_settings().spam_dkim_dns is None
    assert load_settings(spam_dkim_dns="").spam_dkim_dns is None
    assert load_settings(spam_dkim_dns="system").spam_dkim_dns == "system"
    with pytest.raises(ConfigurationError, match="SPAM_DKIM_DNS: must be system or an address"):
        load_settings(spam_dkim_dns="dns.example")


@pytest.mark.parametrize("text", ["192.0.2.53", "127.0.0.1:5353", "[2001:db8::53]", "[::1]:53"])
def test_a_name_server_is_an_address_with_or_without_a_port(text: str) -> None:
    assert load_settings(spam_dkim_dns=text).spam_dkim_dns == text
    assert key_records(text) is not None


@pytest.mark.parametrize(
    "text",
    [
        "999.0.0.1", "1.2.3", "1.2.3.4.5", "192.0.2.53:0", "192.0.2.53:65536", "192.0.2.53:", "192.0.2.53 ", "1.2.3.4:٥٣", "[1.2.3.4]",
        "2001:db8::53", "[2001:db8::53", "[2001:db8:::53]", "[::1]53", "[fe80::1%eth0]", "System",
    ],
)  # fmt: skip
def test_what_is_no_name_server_stops_the_start_and_does_not_mean_off(text: str) -> None:
    with pytest.raises(ConfigurationError, match=r"^SPAM_DKIM_DNS: must be system or an address like 192\.0\.2\.53:53 or \[::1\]\.$"):
        load_settings(spam_dkim_dns=text)
