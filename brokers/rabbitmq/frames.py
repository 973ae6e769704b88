"""The frames that come and go by the thousand, taken apart and put together without pika's five objects for each.

AMQP 0-9-1, sections 2.3.5 and 4.2: a frame is its type, channel and size, a payload and an end octet; a message is a method frame,
a header frame with the body's size and the properties, and as many body frames as it takes. `FastConnection` keeps Basic.Deliver
with its content, and a publisher's Basic.Ack and Basic.Nack, to itself. Every other frame goes to pika as it came.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterable
from functools import lru_cache
from typing import Any

import pika
import pika.exceptions

from brokers.message import Outgoing

METHOD, HEADER, BODY = 1, 2, 3
FRAME_END = 0xCE
FRAME_END_OCTET = bytes([FRAME_END])
OVERHEAD = 8
"""Octets of a frame beside its payload."""
BASIC = 60
PUBLISH, DELIVER, ACK, NACK = b"\x00\x3c\x00\x28", b"\x00\x3c\x00\x3c", b"\x00\x3c\x00\x50", b"\x00\x3c\x00\x78"
MULTIPLE, REQUEUE = 1, 2
HAS_HEADERS = 0x20
"""The flag of the third property, `headers`, in the first of the two octets of flags."""
RECEIVE_BYTES = 65_536
"""How much is read at a time; pika's own 4,096 are a system call for every ten messages."""

_frame_at = struct.Struct(">BHI").unpack_from
_size_at = struct.Struct(">Q").unpack_from
_settlement_at = struct.Struct(">QB").unpack_from
_settlement = struct.Struct(">BHI4sQBB").pack

Arrival = tuple[Any, int, bytes, bytes]
"""Who consumes on the channel, the delivery tag, the properties as they came (flags first), the body."""
Confirm = tuple[int, bool, bool]
"""Tag, whether it stands for all before it too, whether the messages were taken."""


class FastConnection(pika.SelectConnection):  # type: ignore[misc]
    """A SelectConnection with short cuts for the channels that are registered in `consumers` and `confirming`.

    `on_arrivals` and `on_confirms` get all that one read brought together, after pika had its own frames of that read: a message
    that is returned is returned before its confirm.
    """

    def __init__(
        self,
        *args: Any,
        on_arrivals: Callable[[list[Arrival]], None] = lambda _arrivals: None,
        on_confirms: Callable[[list[Confirm]], None] = lambda _confirms: None,
        **kwargs: Any,
    ) -> None:
        self.consumers: dict[int, Any] = {}
        self.confirming: set[int] = set()
        self._on_arrivals = on_arrivals
        self._on_confirms = on_confirms
        self._announced: dict[int, int] = {}  # channel to the tag of a delivery whose header is still to come
        self._contents: dict[int, tuple[int, bytes, bytearray, int]] = {}  # tag, properties, body so far, its size
        self._frame_buffer: bytes  # pika's: what it has read of a frame that is not complete
        super().__init__(*args, **kwargs)

    def forget(self, channel_number: int) -> None:
        """The channel is closed; its number may be used again."""
        self.consumers.pop(channel_number, None)
        self.confirming.discard(channel_number)
        self._announced.pop(channel_number, None)
        self._contents.pop(channel_number, None)

    def send_frames(self, pieces: Iterable[bytes]) -> None:
        """Whole frames, any number to a piece, after everything that was sent before."""
        self._output_marshaled_frames(pieces)

    def abort(self, why: str) -> None:
        """Ends the connection now. `close` asks the server first, and one that hangs never answers."""
        if not self.is_closed:
            self._terminate_stream(pika.exceptions.ConnectionClosedByClient(320, why))

    def _proto_connection_made(self, transport: Any) -> None:
        transport._MAX_RECV_BYTES = RECEIVE_BYTES  # noqa: SLF001
        super()._proto_connection_made(transport)

    def _on_data_available(self, data: bytes) -> None:
        if not (self.consumers or self.confirming):
            super()._on_data_available(data)
            return
        if self._frame_buffer:  # the beginning of a frame, from the last read
            data, self._frame_buffer = self._frame_buffer + data, b""
        arrivals: list[Arrival] = []
        confirms: list[Confirm] = []
        rest, others = self._sort(data, arrivals, confirms)
        self.bytes_received += rest - sum(map(len, others))  # pika counts its own; the heartbeat looks at the sum
        if others:
            super()._on_data_available(b"".join(others))
        self._frame_buffer = data[rest:]
        if confirms:
            self._on_confirms(confirms)
        if arrivals:
            self._on_arrivals(arrivals)

    def _sort(self, data: bytes, arrivals: list[Arrival], confirms: list[Confirm]) -> tuple[int, list[bytes]]:
        """Where the last whole frame ends, and the frames for pika."""
        others: list[bytes] = []
        position, end = 0, len(data)
        while end - position >= OVERHEAD:
            kind, channel, size = _frame_at(data, position)
            following = position + OVERHEAD + size
            if following > end:
                break
            if data[following - 1] != FRAME_END:
                taken = False  # pika knows what to raise
            elif kind == BODY:
                taken = self._take_body(channel, data[position + 7 : following - 1], arrivals)
            elif kind == HEADER:
                taken = self._take_header(channel, data[position + 11 : following - 1], arrivals)
            else:
                taken = kind == METHOD and self._take_method(channel, data, position + 7, confirms)
            if not taken:
                others.append(data[position:following])
            position = following
        return position, others

    def _take_method(self, channel: int, data: bytes, at: int, confirms: list[Confirm]) -> bool:
        method = data[at : at + 4]
        if method == DELIVER and channel in self.consumers:
            self._announced[channel] = _size_at(data, at + 5 + data[at + 4])[0]  # behind the consumer tag, a short string
            return True
        if channel in self.confirming and method in {ACK, NACK}:
            tag, bits = _settlement_at(data, at + 4)
            confirms.append((tag, bool(bits & MULTIPLE), method == ACK))
            return True
        return False

    def _take_header(self, channel: int, payload: bytes, arrivals: list[Arrival]) -> bool:
        tag = self._announced.pop(channel, None)
        if tag is None:
            return False
        (size,) = _size_at(payload)
        if size:
            self._contents[channel] = (tag, payload[8:], bytearray(), size)
        else:
            arrivals.append((self.consumers[channel], tag, payload[8:], b""))
        return True

    def _take_body(self, channel: int, fragment: bytes, arrivals: list[Arrival]) -> bool:
        content = self._contents.get(channel)
        if content is None:
            return False
        tag, properties, body, size = content
        if body or len(fragment) != size:
            body += fragment
            if len(body) < size:
                return True
            if len(body) > size:
                raise pika.exceptions.BodyTooLongError(len(body), size)
            fragment = bytes(body)
        del self._contents[channel]
        arrivals.append((self.consumers[channel], tag, properties, fragment))
        return True


def headers_of(properties: bytes) -> dict[str, Any]:
    """The header table of a message's properties as they came; empty when there is none or pika cannot read it."""
    if not properties[0] & HAS_HEADERS:
        return {}
    return properties_of(properties).headers or {}


def properties_of(properties: bytes) -> pika.BasicProperties:
    """pika's object for properties as they came; an empty one when pika cannot read them, for anybody may send anything."""
    try:
        return pika.BasicProperties().decode(properties)
    except Exception:  # pika's decoder raises what its struct and codec calls raise, for bytes that anybody chose
        return pika.BasicProperties()


def settlement(channel: int, method: bytes, tag: int, bits: int = 0) -> bytes:
    """A Basic.Ack (bits: MULTIPLE) or Basic.Nack (MULTIPLE, REQUEUE)."""
    return _settlement(METHOD, channel, 13, method, tag, bits, FRAME_END)


def publications(channel: int, messages: Iterable[Outgoing], frame_max: int) -> bytes:
    """Messages to the default exchange: mandatory, persistent, JSON."""
    longest = frame_max - OVERHEAD
    pieces: list[bytes] = []
    for message in messages:
        body = message.body
        size = len(body)
        if 0 < size <= longest:
            pieces += (_before_body(channel, message.routing_key, message.priority, size), body, FRAME_END_OCTET)
        else:
            pieces.append(_before_body(channel, message.routing_key, message.priority, size)[: -7 if size else None])
            pieces += (_frame(BODY, channel, body[at : at + longest]) for at in range(0, size, longest))
    return b"".join(pieces)


@lru_cache(maxsize=4096)
def _before_body(channel: int, routing_key: str, priority: int, size: int) -> bytes:
    """Method and header frame, and the seven octets that open a body frame. For one queue only the size differs, and sizes repeat."""
    key = routing_key.encode()
    arguments = PUBLISH + b"\0\0\0" + bytes([len(key)]) + key + b"\x01"  # ticket, exchange "", routing key, mandatory
    properties = pika.BasicProperties(content_type="application/json", delivery_mode=2, priority=priority)
    header = struct.pack(">HHQ", BASIC, 0, size) + b"".join(properties.encode())
    body = struct.pack(">BHI", BODY, channel, size) if size else b""
    return _frame(METHOD, channel, arguments) + _frame(HEADER, channel, header) + body


def _frame(kind: int, channel: int, payload: bytes) -> bytes:
    return struct.pack(">BHI", kind, channel, len(payload)) + payload + FRAME_END_OCTET
