"""The short cut for frames: whatever the network cuts, mixes or leaves empty, each delivery and confirm arrives once and in order."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import Any

import pika
import pika.exceptions
import pika.frame
import pytest
from pika import spec

from brokers.message import Outgoing
from brokers.rabbitmq.frames import (
    ACK,
    BODY,
    DELIVER,
    HEADER,
    METHOD,
    MULTIPLE,
    NACK,
    REQUEUE,
    Arrival,
    Confirm,
    FastConnection,
    _frame,
    headers_of,
    properties_of,
    publications,
    settlement,
)

PLAIN = pika.BasicProperties(content_type="application/json", delivery_mode=2, priority=1)
HEARTBEAT = pika.frame.Heartbeat().marshal()


def encoded(properties: pika.BasicProperties) -> bytes:
    return b"".join(properties.encode())


def delivery(channel: int, tag: int, *fragments: bytes, properties: pika.BasicProperties = PLAIN, consumer_tag: str = "ctag1.x") -> bytes:
    """As RabbitMQ sends it."""
    method = spec.Basic.Deliver(consumer_tag, tag, redelivered=True, exchange="", routing_key="default")
    header = pika.frame.Header(channel, sum(map(len, fragments)), properties)
    bodies = b"".join(_frame(BODY, channel, fragment) for fragment in fragments)
    return bytes(pika.frame.Method(channel, method).marshal() + header.marshal() + bodies)


class Connection(FastConnection):
    """Without a socket; what pika would get is kept."""

    def __init__(self) -> None:
        self.arrivals: list[Arrival] = []
        self.confirms: list[Confirm] = []
        self.reads: list[int] = []
        self.left: list[bytes] = []
        super().__init__(
            pika.ConnectionParameters(),
            on_arrivals=self._arrived,
            on_confirms=self.confirms.extend,
            custom_ioloop=NoLoop(),
            internal_connection_workflow=False,
        )
        self.consumers = {1: "one", 2: "two"}
        self.confirming = {9}

    def _arrived(self, arrivals: list[Arrival]) -> None:
        self.reads.append(len(arrivals))
        self.arrivals += arrivals

    def _process_frame(self, frame: Any) -> None:
        self.left.append(frame.marshal())

    def read(self, *pieces: bytes) -> Connection:
        for piece in pieces:
            self._on_data_available(piece)
        return self


class NoLoop:
    """Nothing ever happens."""

    READ, WRITE, ERROR = 1, 4, 8

    def __getattr__(self, name: str) -> Any:
        return lambda *_args, **_kwargs: None


EVERYTHING = b"".join(
    [
        HEARTBEAT,
        delivery(1, 1, b"first"),
        delivery(2, 1, b"of another", b" channel, in", b" three frames"),
        pika.frame.Method(1, spec.Basic.CancelOk("ctag1.x")).marshal(),
        delivery(1, 2),
        settlement(9, ACK, 7, MULTIPLE),
        settlement(9, NACK, 8),
        delivery(7, 1, b"pika's"),
        settlement(3, ACK, 1),
        delivery(1, 2**40, b"\xce" * 20, properties=pika.BasicProperties(headers={"x": 1})),
        HEARTBEAT,
    ]
)
ARRIVALS = [
    ("one", 1, encoded(PLAIN), b"first"),
    ("two", 1, encoded(PLAIN), b"of another channel, in three frames"),
    ("one", 2, encoded(PLAIN), b""),
    ("one", 2**40, encoded(pika.BasicProperties(headers={"x": 1})), b"\xce" * 20),
]
CONFIRMS = [(7, True, True), (8, False, False)]


def checked(connection: Connection) -> None:
    assert connection.arrivals == ARRIVALS
    assert connection.confirms == CONFIRMS
    left = b"".join(connection.left)
    assert left == b"".join(
        [
            HEARTBEAT,
            pika.frame.Method(1, spec.Basic.CancelOk("ctag1.x")).marshal(),
            delivery(7, 1, b"pika's"),
            settlement(3, ACK, 1),
            HEARTBEAT,
        ]
    )
    assert connection.bytes_received == len(EVERYTHING)
    assert connection._frame_buffer == b""


def test_one_read_brings_everything_together() -> None:
    connection = Connection().read(EVERYTHING)
    checked(connection)
    assert connection.reads == [4]


def test_it_may_be_cut_anywhere() -> None:
    for at in range(len(EVERYTHING)):
        checked(Connection().read(EVERYTHING[:at], EVERYTHING[at:]))


@pytest.mark.parametrize("size", [1, 2, 3, 7, 8, 9, 50])
def test_it_may_come_in_pieces_of_any_size(size: int) -> None:
    checked(Connection().read(*(EVERYTHING[at : at + size] for at in range(0, len(EVERYTHING), size))))


def test_frames_of_channels_may_be_mixed() -> None:
    def frames(data: bytes) -> Iterator[bytes]:
        while data:
            (size,) = struct.unpack_from(">I", data, 3)
            yield data[: size + 8]
            data = data[size + 8 :]

    one, two = list(frames(delivery(1, 5, b"abc", b"def"))), list(frames(delivery(2, 6, b"ghi", b"jkl")))
    mixed = b"".join(frame for pair in zip(one, two, strict=True) for frame in (*pair, HEARTBEAT))
    connection = Connection().read(mixed)
    assert [(tag, body) for _, tag, _, body in connection.arrivals] == [(5, b"abcdef"), (6, b"ghijkl")]
    assert len(connection.left) == 4


def test_before_a_channel_is_registered_pika_has_the_frames_and_keeps_the_half_one() -> None:
    connection = Connection()
    connection.consumers, connection.confirming = {}, set()
    whole = delivery(1, 1, b"early")
    connection.read(whole, HEARTBEAT[:3])
    connection.consumers = {1: "one"}
    connection.read(HEARTBEAT[3:] + delivery(1, 2, b"late"))
    assert b"".join(connection.left) == whole + HEARTBEAT
    assert [tag for _, tag, _, _ in connection.arrivals] == [2]


def test_what_a_closed_channel_left_unfinished_does_not_reach_its_successor() -> None:
    for at in range(len(delivery(1, 1, b"old", b"er"))):
        connection = Connection().read(delivery(1, 1, b"old", b"er")[:at])
        connection._frame_buffer = b""  # the server ends the frame before it closes the channel
        connection.forget(1)
        connection.consumers[1] = "new"
        connection.read(delivery(1, 1, b"new"))
        assert connection.arrivals == [("new", 1, encoded(PLAIN), b"new")]


def test_a_frame_without_its_end_and_a_body_that_is_too_long_are_the_servers_fault() -> None:
    whole = delivery(1, 1, b"first")
    with pytest.raises(pika.exceptions.InvalidFrameError):
        Connection().read(whole[:-1] + b"\0")
    with pytest.raises(pika.exceptions.BodyTooLongError):
        Connection().read(delivery(1, 1, b"ab").replace(struct.pack(">Q", 2), struct.pack(">Q", 1)))


def test_settlements_are_what_pika_would_send() -> None:
    assert settlement(4, ACK, 2**33, MULTIPLE) == pika.frame.Method(4, spec.Basic.Ack(2**33, multiple=True)).marshal()
    assert settlement(4, NACK, 5) == pika.frame.Method(4, spec.Basic.Nack(5, multiple=False, requeue=False)).marshal()
    assert settlement(4, NACK, 5, REQUEUE) == pika.frame.Method(4, spec.Basic.Nack(5, multiple=False, requeue=True)).marshal()


@pytest.mark.parametrize("size", [0, 1, 99, 100, 101, 200, 201, 1000])
@pytest.mark.parametrize("priority", [0, 2])
def test_publications_are_what_pika_would_send(size: int, priority: int) -> None:
    body = bytes(range(256)) * 4
    messages = [Outgoing("default", body[:size], priority), Outgoing("ü", b"next", priority)]
    expected = b""
    for message in messages:
        properties = pika.BasicProperties("application/json", delivery_mode=2, priority=priority)
        expected += pika.frame.Method(3, spec.Basic.Publish(routing_key=message.routing_key, mandatory=True)).marshal()
        expected += pika.frame.Header(3, len(message.body), properties).marshal()
        for at in range(0, len(message.body), 100):
            expected += pika.frame.Body(3, message.body[at : at + 100]).marshal()
    assert publications(3, messages, frame_max=108) == expected


def test_headers_are_read_only_where_there_are_any_and_never_raise() -> None:
    assert headers_of(encoded(PLAIN)) == {}
    assert headers_of(encoded(pika.BasicProperties(headers={"x-death": [{"count": 1}]}))) == {"x-death": [{"count": 1}]}
    nonsense = b"\x20\0" + struct.pack(">I", 9) + b"\x01xQabcdef"
    assert headers_of(nonsense) == {}
    assert properties_of(nonsense) == pika.BasicProperties()
    assert properties_of(b"\xff\xff") == pika.BasicProperties()


def test_the_constants_are_the_specifications() -> None:
    assert (METHOD, HEADER, BODY) == (spec.FRAME_METHOD, spec.FRAME_HEADER, spec.FRAME_BODY)
    for constant, method in ((DELIVER, spec.Basic.Deliver), (ACK, spec.Basic.Ack), (NACK, spec.Basic.Nack)):
        assert constant == struct.pack(">I", method.INDEX)
