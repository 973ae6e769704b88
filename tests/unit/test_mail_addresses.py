"""Addresses and accounts: one normal form, nobody twice, and no secret or address in anything that is printed."""

from __future__ import annotations

import pickle

import pytest

from core.errors import InvalidInputError
from mail.accounts import Endpoint, Secret, Security
from mail.addresses import Address, domain_of, is_same_person, normalise_address, parse_address, unique_recipients


@pytest.mark.parametrize(
    ("typed", "normal"),
    [
        (" Jo@EXAMPLE.com ", "Jo@example.com"), ("jo@münchen.example", "jo@xn--mnchen-3ya.example"), ("jo@shop.test", "jo@shop.test"),
        ("jo@box.local", "jo@box.local"), ("root@localhost", "root@localhost"), ("jürgen@x.example", "jürgen@x.example"),
    ],
)  # fmt: skip
def test_an_address_has_one_normal_form(typed: str, normal: str) -> None:
    assert normalise_address(typed) == normal


@pytest.mark.parametrize(
    "typed", ["", "jo", "jo@", "@x.org", "jo@x", "jo@@x.org", "jo x@x.org", "a@x.org, b@x.org", "jo@[127.0.0.1]", "jo@x..org"]
)
def test_what_is_no_address_is_refused_by_field_and_not_repeated(typed: str) -> None:
    with pytest.raises(InvalidInputError, match=r"to\[1\]") as caught:
        normalise_address(typed, field="to[1]")
    assert not typed or typed not in str(caught.value).removeprefix("to[1]") or len(typed) < 3


@pytest.mark.parametrize(
    ("typed", "parsed"),
    [
        ("jo@x.org", Address("", "jo@x.org")),
        ("Jo Ann <jo@x.org>", Address("Jo Ann", "jo@x.org")),
        ('"Ann, Jo" <jo@X.org>', Address("Ann, Jo", "jo@x.org")),
        ("Jürgen <j@x.org>", Address("Jürgen", "j@x.org")),
    ],
)
def test_a_typed_address_may_have_a_name(typed: str, parsed: Address) -> None:
    assert parse_address(typed) == parsed


@pytest.mark.parametrize("typed", ["Jo\r\nBcc: x@y.org <jo@x.org>", "jo@x.org\n", "x" * 2000 + "@x.org", "", "Jo"])
def test_a_typed_address_that_could_mean_another_is_refused(typed: str) -> None:
    with pytest.raises(InvalidInputError):
        parse_address(typed)


@pytest.mark.parametrize(
    "typed", ["a@x.org, b@x.org", "A <a@x.org>, b@x.org", "a@x.org; b@x.org", "friends: a@x.org, b@x.org;", "<a@x.org> <b@x.org>"]
)
def test_of_several_in_one_place_none_is_dropped_in_silence(typed: str) -> None:
    with pytest.raises(InvalidInputError, match=r"^to\[0\] ") as caught:
        parse_address(typed, field="to[0]")
    assert "x.org" not in str(caught.value)


def test_who_stands_in_several_lists_stays_in_the_first() -> None:
    recipients = unique_recipients(["a@x.org", "A <A@x.org>"], ["b@x.org", "a@x.org"], ["c@x.org", "b@X.org"])
    assert recipients.all == ["a@x.org", "b@x.org", "c@x.org"]
    assert [address.addr for address in recipients.bcc] == ["c@x.org"]


def test_who_is_only_spelled_alike_is_somebody_else() -> None:
    people = ["strasse@x.test", "straße@x.test", "STRASSE@x.test", "a@bücher.test", "A@xn--bcher-kva.test"]
    assert unique_recipients(people).all == ["strasse@x.test", "straße@x.test", "a@xn--bcher-kva.test"]


def test_a_bad_recipient_is_named_by_list_and_position() -> None:
    with pytest.raises(InvalidInputError, match=r"cc\[1\]"):
        unique_recipients(["a@x.org"], ["b@x.org", "nobody"])


def test_the_domain_is_what_stands_after_the_last_at() -> None:
    assert (domain_of("a@X.org"), domain_of('"a@b"@x.org'), domain_of("nobody")) == ("x.org", "x.org", "")


def test_people_are_the_same_in_any_case() -> None:
    assert is_same_person("Jo@x.org", "jo@X.org")


def test_a_secret_does_not_print_compare_open_or_pickle() -> None:
    secret = Secret("hunter2")
    assert f"{secret} {secret!r} {[secret]}" == "*** *** [***]"
    assert secret == Secret("hunter2") != Secret("other")
    assert len({secret, Secret("hunter2")}) == 1
    assert secret.reveal() == "hunter2"
    with pytest.raises(TypeError):
        pickle.dumps(secret)


def test_an_endpoint_prints_without_its_secret() -> None:
    endpoint = Endpoint("mail.x.org", 993, Security("tls"), "jo", Secret("hunter2"))
    assert "hunter2" not in repr(endpoint)
    assert endpoint.where == "mail.x.org:993"
