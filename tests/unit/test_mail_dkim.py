"""DKIM: what is signed verifies with a verifier that shares no line with the signer, and nothing that was changed does."""

from __future__ import annotations

import base64
import hashlib
import re
from datetime import UTC, datetime

import pytest
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import padding
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey
from cryptography.hazmat.primitives.serialization import load_der_public_key

from core.errors import InvalidInputError
from mail.addresses import Address
from mail.dkim import (
    ALGORITHMS,
    PrivateKey,
    Signer,
    check_selector,
    load_private_key,
    new_private_key,
    record_name,
    relaxed_body,
    relaxed_header,
    txt_strings,
)
from mail.mime_build import OutgoingAttachment, OutgoingMail, build_message, bulk_headers

MOMENT = datetime(2026, 11, 21, 12, tzinfo=UTC)
KEYS = {algorithm: new_private_key(algorithm) for algorithm in ALGORITHMS}


def verified(message: bytes, record: str) -> bool:
    """RFC 6376 section 6, by the letter and line by line: split, canonicalise, hash, look the signature over."""
    head, body = message.split(b"\r\n\r\n", 1)
    fields: list[list[bytes]] = []
    for line in head.split(b"\r\n"):
        if line[:1] in {b" ", b"\t"}:
            fields[-1].append(line)
        else:
            fields.append([line])
    whole = [b"\r\n".join(lines) for lines in fields]
    signature = next(field for field in whole if field.lower().startswith(b"dkim-signature:"))
    value = signature.split(b":", 1)[1].decode()
    tags = {name.strip(): text for name, _, text in (part.partition("=") for part in value.split(";"))}
    published = {name.strip(): text for name, _, text in (part.partition("=") for part in record.split(";"))}

    lines = [" ".join(re.split(r"[ \t]+", line.decode("latin-1"))).rstrip() for line in body.split(b"\r\n")]
    while lines and lines[-1] == "":
        del lines[-1]
    canonical = "".join(line + "\r\n" for line in lines).encode("latin-1")
    if base64.b64encode(hashlib.sha256(canonical).digest()).decode() != re.sub(r"\s", "", tags["bh"]):
        return False

    def canonical_field(field: bytes) -> str:
        name, text = field.decode("latin-1").split(":", 1)
        return name.lower().rstrip() + ":" + re.sub(r"[ \t]+", " ", text.replace("\r\n", "")).strip()

    left = [field for field in whole if field is not signature]
    data = ""
    for name in (each.strip().lower() for each in re.sub(r"\s", "", tags["h"]).split(":")):
        for field in reversed(left):
            if field.split(b":", 1)[0].decode().strip().lower() == name:
                data += canonical_field(field) + "\r\n"
                left.remove(field)
                break
    emptied = re.sub(rb"([;\s]b=)[^;]*", rb"\1", signature)
    data += canonical_field(emptied)
    public, given = base64.b64decode(published["p"]), base64.b64decode(re.sub(r"\s", "", tags["b"]))
    try:
        if tags["a"].strip() == "ed25519-sha256":
            Ed25519PublicKey.from_public_bytes(public).verify(given, hashlib.sha256(data.encode("latin-1")).digest())
        else:
            key = load_der_public_key(public)
            assert isinstance(key, RSAPublicKey)
            key.verify(given, data.encode("latin-1"), padding.PKCS1v15(), hashes.SHA256())
    except InvalidSignature:
        return False
    return True


def mail(**changes: object) -> bytes:
    given: dict[str, object] = {
        "message_id": "<1@acme.test>",
        "date": MOMENT,
        "sender": Address("Änn of  Acme", "ann@acme.test"),
        "to": [Address("", f"bob{number}@globex.test") for number in range(12)],
        "subject": "A subject that is long enough to be folded,  with   blanks, and grüße at its end " * 2,
        "text": "Hello  there \n\n\t tabs \n.\n\n\n",
        "html": "<p>ü</p>",
        "attachments": [OutgoingAttachment("a.bin", "application/octet-stream", bytes(range(256)) * 9)],
        "headers": bulk_headers("https://acme.test/u?x=1", "stop@acme.test"),
    }
    return build_message(OutgoingMail(**{**given, **changes}))  # type: ignore[arg-type]


def signed(key: PrivateKey, raw: bytes) -> bytes:
    return Signer("acme.test", "s1", key).signed(raw, MOMENT)


@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.parametrize(
    "raw",
    [
        mail(),
        mail(attachments=[], html=None, text="", headers=()),
        b"From: a@acme.test\r\nTo: b\r\n\r\n",
        b"From: a\r\n\r\nx\r\n \t\r\n\r\n",
        b"To: one\r\nTo: two\r\nFrom: a\r\n\r\nx\r\n",
    ],
)
def test_a_signed_mail_verifies_and_is_otherwise_unchanged(algorithm: str, raw: bytes) -> None:
    key = KEYS[algorithm]
    message = signed(key, raw)
    assert message.endswith(raw)
    assert verified(message, key.public_record())
    assert max(map(len, message.split(b"\r\n\r\n")[0].split(b"\r\n"))) <= max(100, *map(len, raw.split(b"\r\n")))


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_a_change_on_the_way_is_noticed_and_refolding_is_not(algorithm: str) -> None:
    key = KEYS[algorithm]
    message = signed(key, mail())
    record = key.public_record()
    refolded = message.replace(b"Reply-To", b"Reply-To").replace(b"\r\n bob", b"\r\n\t  bob").replace(b",\r\n ", b",  \r\n   ")
    assert refolded != message
    assert verified(refolded, record)
    for old, new in (
        (b"Hello", b"Jello"),
        (b"bob3@", b"eve3@"),
        (b"From: ", b"From: eve@evil.test, "),
        (b"List-Unsubscribe-Post: List", b"List-Unsubscribe-Post: list"),
        (b"acme.test/u?x=1", b"evil.test/u?x=1"),
        (b"Subject:", b"Subject: Free! "),
    ):
        changed = message.replace(old, new)
        assert changed != message, old
        assert not verified(changed, record), old


def test_a_second_from_or_subject_breaks_the_signature() -> None:
    key = KEYS[ALGORITHMS[1]]
    message = signed(key, mail())
    for extra in (b"From: eve@evil.test\r\n", b"Subject: other\r\n", b"Cc: eve@evil.test\r\n", b"Reply-To: eve@evil.test\r\n"):
        assert not verified(extra + message, key.public_record()), extra


def test_another_key_does_not_verify() -> None:
    key, other = KEYS[ALGORITHMS[1]], new_private_key(ALGORITHMS[1])
    assert not verified(signed(key, mail()), other.public_record())


def test_the_examples_of_the_rfc_are_canonicalised_as_there() -> None:
    assert relaxed_header(b"A: X") == b"a:X\r\n"
    assert relaxed_header(b"B : Y\t\r\n\tZ  ") == b"b:Y Z\r\n"
    assert relaxed_body(b" C \r\nD \t E\r\n\r\n\r\n") == b" C\r\nD E\r\n"  # RFC 6376 3.4.5
    assert relaxed_body(b"") == relaxed_body(b"\r\n\r\n") == b""


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_a_key_survives_its_text_and_prints_as_nothing(algorithm: str) -> None:
    key = KEYS[algorithm]
    again = load_private_key(key.as_text())
    assert again.public_record() == key.public_record()
    assert again.algorithm == algorithm
    assert repr(key) == "***"
    assert "".join(txt_strings(key.public_record())) == key.public_record()
    assert max(map(len, txt_strings(key.public_record()))) <= 255


def test_names_that_dns_cannot_have_are_refused() -> None:
    assert record_name(check_selector("mailroom-2026"), "acme.test") == "mailroom-2026._domainkey.acme.test"
    for selector in ("", "-a", "a.b", "A", "a" * 64, "a\n"):
        with pytest.raises(InvalidInputError):
            check_selector(selector)
    with pytest.raises(InvalidInputError):
        new_private_key("rsa-sha1")
