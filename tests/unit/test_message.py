"""The envelope and its signature."""

from __future__ import annotations

import hashlib
import hmac
import json
from typing import Any

import pytest
from dramatiq import Message

from brokers.message import END, MAC_AND_END, MAX_BYTES, Envelope, MessageEncoder, MessageRejectedError, _Key
from brokers.queues import POLICIES, Priority, Queue, by_urgency, dead_letter_queue, policy_of
from core.ids import new_id

RUN, TENANT, USER = new_id(), new_id(), new_id()
OLD, NEW = bytes(32), b"n" * 32
ENVELOPE = Envelope(RUN, "add", "default", TENANT, USER, "req-1", 3, 2)


def changed(body: bytes, **fields: Any) -> bytes:
    return json.dumps({**json.loads(body), **fields}).encode()


def test_an_envelope_comes_back_as_it_went() -> None:
    encoder = MessageEncoder({"k1": OLD})
    unpacked = encoder.unpack(encoder.pack(ENVELOPE))
    assert (unpacked.run_id, unpacked.task, unpacked.queue, unpacked.tenant_id) == (RUN, "add", "default", TENANT)
    assert (unpacked.user_id, unpacked.request_id, unpacked.attempt, unpacked.args) == (USER, "req-1", 3, {})


def test_the_first_key_signs_and_every_key_verifies() -> None:
    old, both = MessageEncoder({"old": OLD}), MessageEncoder({"new": NEW, "old": OLD})
    assert both.unpack(old.pack(ENVELOPE)).run_id == RUN
    with pytest.raises(MessageRejectedError, match="unknown key"):
        old.unpack(both.pack(ENVELOPE))
    with pytest.raises(MessageRejectedError, match="bad signature"):
        MessageEncoder({"old": NEW}).unpack(old.pack(ENVELOPE))


@pytest.mark.parametrize(
    "fields",
    [
        {"actor_name": "refuse"},
        {"queue_name": "sync"},
        {"message_id": new_id()},
        {"kwargs": {"x": 1}},
        {"args": [1]},
        {"message_timestamp": 0},
        {"more": True},
    ],
)
def test_whatever_is_changed_breaks_the_signature(fields: dict[str, Any]) -> None:
    encoder = MessageEncoder({"k1": OLD})
    with pytest.raises(MessageRejectedError, match="bad signature"):
        encoder.unpack(changed(encoder.pack(ENVELOPE), **fields))


@pytest.mark.parametrize("option", ["tenant_id", "user_id", "attempt", "v", "request_id"])
def test_whatever_option_is_changed_breaks_the_signature(option: str) -> None:
    encoder = MessageEncoder({"k1": OLD})
    body = encoder.pack(ENVELOPE)
    options = {**json.loads(body)["options"], option: "other"}
    with pytest.raises(MessageRejectedError, match="bad signature"):
        encoder.unpack(changed(body, options=options))


def test_no_byte_can_be_changed_added_or_taken_away() -> None:
    encoder = MessageEncoder({"k1": OLD})
    body = encoder.pack(ENVELOPE)
    forgeries = [body[:at] + bytes([body[at] ^ bit]) + body[at + 1 :] for at in range(len(body)) for bit in (1, 32)]
    forgeries += [body[:at] for at in range(len(body))] + [body[:at] + b" " + body[at:] for at in range(len(body) + 1)]
    for forgery in forgeries:
        with pytest.raises(MessageRejectedError):
            encoder.decode(forgery)


def test_a_second_member_of_the_same_name_does_not_get_in() -> None:
    encoder = MessageEncoder({"k1": OLD})
    body = encoder.pack(ENVELOPE)
    for forgery in (
        body[:-1] + b',"actor_name":"refuse"}',
        body[:-2] + b',"tenant_id":"x"}}',
        body[:-1] + b',"options":' + json.dumps(json.loads(body)["options"], separators=(",", ":")).encode() + b"}",
        b'{"actor_name":"refuse",' + body[1:],
    ):
        with pytest.raises(MessageRejectedError, match="bad signature"):
            encoder.unpack(forgery)


@pytest.mark.parametrize("text", ['"signature":"k1:', '","signature":"k1:' + "0" * 64 + '"}}', "\\", "ü\u2028"])
def test_arguments_may_look_like_anything(text: str) -> None:
    encoder = MessageEncoder({'odd "key" ü': NEW, "k1": OLD})
    envelope = Envelope(RUN, "add", "default", TENANT, USER, text, None, 1, {"x": text, text: 1})
    assert encoder.unpack(encoder.pack(envelope)) == envelope


@pytest.mark.parametrize("length", [1, 32, 64, 65, 200])
def test_the_signature_is_hmac_sha256(length: int) -> None:
    key = bytes(range(length))
    for text in (b"", b"some text", b"." * 5000):
        assert _Key("k1", key).mac(text) == hmac.new(key, text, hashlib.sha256).hexdigest().encode()


def test_a_plain_send_of_another_service_goes_through_the_encoder_as_it_came() -> None:
    encoder = MessageEncoder({"k1": OLD})
    sent: Message[Any] = Message("default", "add", (1, "ü"), {"x": 1}, {"tenant_id": TENANT, "signature": "not yet"})
    fields = encoder.decode(encoder.encode(sent.asdict()))
    assert fields["options"] == {"tenant_id": TENANT, "v": 1}
    fields["args"] = tuple(fields["args"])
    assert Message(**fields) == Message(**{**sent.asdict(), "options": {"tenant_id": TENANT, "v": 1}})


@pytest.mark.parametrize("signed", [b"", b"{", b'{"options":', b'{"options":{}', b'{"options":[1', b'{"other":{"x":1'])
def test_a_valid_signature_over_nonsense_is_still_nonsense(signed: bytes) -> None:
    key = _Key("k1", OLD)
    with pytest.raises(MessageRejectedError):
        MessageEncoder({"k1": OLD}).unpack(signed + key.mark + key.mac(signed) + END)


def test_a_newer_version_says_so_signed_or_not() -> None:
    encoder, key = MessageEncoder({"k1": OLD}), _Key("k1", OLD)
    signed = encoder.pack(ENVELOPE)[: -MAC_AND_END - len(key.mark)].replace(b'"v":1', b'"v":2')
    for body in (signed + key.mark + key.mac(signed) + END, signed + b',"sig":"another kind"}}'):
        with pytest.raises(MessageRejectedError, match="newer version"):
            encoder.unpack(body)


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (b"", "not_json"),
        (b"\xff", "not_json"),
        (b"7", "not_json"),
        (b'{"options": []}', "not_json"),
        (b'{"options": {}}', "unsigned"),
        (b'{"options": {"signature": 7}}', "unsigned"),
        (b'{"options": {"signature": "k1"}}', "bad_signature"),
        (b"x" * (MAX_BYTES + 1), "too_large"),
    ],
)
def test_a_message_that_is_none_says_why(body: bytes, reason: str) -> None:
    with pytest.raises(MessageRejectedError) as error:
        MessageEncoder({"k1": OLD}).unpack(body)
    assert error.value.reason == reason


@pytest.mark.parametrize("missing", ["message_id", "actor_name", "queue_name", "kwargs"])
def test_a_signed_message_without_a_part_is_incomplete(missing: str) -> None:
    encoder = MessageEncoder({"k1": OLD})
    fields = {"queue_name": "q", "actor_name": "a", "args": [], "kwargs": {}, "options": {"tenant_id": TENANT}, "message_id": RUN}
    assert encoder.unpack(encoder.encode(fields)).attempt is None
    del fields[missing]
    with pytest.raises(MessageRejectedError) as error:
        encoder.unpack(encoder.encode(fields))
    assert error.value.reason == "incomplete"


@pytest.mark.parametrize("wrong", [{"message_id": "7"}, {"message_id": RUN.upper()}, {"message_id": 7}])
def test_an_id_that_is_none_is_refused_before_the_database_sees_it(wrong: dict[str, Any]) -> None:
    encoder = MessageEncoder({"k1": OLD})
    fields = {"queue_name": "q", "actor_name": "a", "args": [], "kwargs": {}, "options": {"tenant_id": TENANT}, "message_id": RUN}
    with pytest.raises(MessageRejectedError) as error:
        encoder.unpack(encoder.encode({**fields, **wrong}))
    assert error.value.reason == "wrong_id"


def test_a_message_carries_no_payload_and_no_secret() -> None:
    body = json.loads(MessageEncoder({"k1": OLD}).pack(ENVELOPE))
    assert (body["args"], body["kwargs"]) == ([], {})
    assert set(body["options"]) == {"tenant_id", "user_id", "request_id", "attempt", "priority", "v", "signature"}


def test_every_queue_has_a_policy_and_limits_in_order() -> None:
    assert set(POLICIES) == set(Queue)
    for policy in POLICIES.values():
        assert 0 < policy.soft_limit < policy.hard_limit
        assert 0 <= policy.priority <= 10
        assert policy.retries >= 1


def test_more_urgent_queues_come_first_and_unknown_ones_are_ordinary() -> None:
    assert by_urgency(["low_priority", "spam", "mine", "default", "sync"]) == ["sync", "mine", "default", "spam", "low_priority"]
    assert policy_of("mine") == POLICIES[Queue.DEFAULT]
    assert dead_letter_queue("sync") == "sync.XQ"
    assert list(Priority) == [0, 1, 2]
