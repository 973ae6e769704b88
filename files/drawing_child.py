"""The limited child's own side: takes a file's descriptor and what is wanted of it, answers with pictures or a sentence.

Its standard input is a socket; the parent's end of it closing is the end. Each way a message is four bytes of length, JSON, and after
an answer the pictures' bytes.
"""

from __future__ import annotations

import os
import socket
import struct
import sys
from typing import Any

import orjson

from files import confinement, drawing

LONGEST_REQUEST = 65_536
IDLE_SECONDS = 300.0
LENGTH = struct.Struct("!I")


def main(memory_mb: int) -> None:
    """Until the parent goes, or has wanted nothing for a while."""
    confinement.die_with_parent()
    channel = socket.socket(fileno=os.dup(0))
    channel.settimeout(IDLE_SECONDS)
    drawing.get_ready()
    confinement.limit(memory_mb)
    is_filtered = confinement.give_up_system_calls()
    _send(channel, {"ready": True, "filtered": is_filtered})
    while (received := _receive(channel)) is not None:
        request, descriptor = received
        _send(channel, *_answer(request, descriptor, memory_mb))


def _answer(request: dict[str, Any], descriptor: int, memory_mb: int) -> tuple[dict[str, Any], list[bytes]]:
    confinement.limit_processor(request["seconds"])
    try:
        with os.fdopen(descriptor, "rb") as file:
            pictures = drawing.draw(file, [(width, height) for width, height in request["sizes"]], request["max_pixels"])
    except drawing.UndrawableError as error:
        return {"error": str(error)}, []
    except MemoryError:
        return {"error": f"The image needs more than {memory_mb} MB of memory to be drawn."}, []
    facts = [{"width": each.width, "height": each.height, "kind": each.kind, "bytes": len(each.content)} for each in pictures]
    return {"pictures": facts}, [each.content for each in pictures]


def _receive(channel: socket.socket) -> tuple[dict[str, Any], int] | None:
    try:
        data, descriptors, _, _ = socket.recv_fds(channel, LONGEST_REQUEST, 1)
    except TimeoutError:
        return None
    if not data:
        return None
    (length,) = LENGTH.unpack_from(data)
    while len(data) < LENGTH.size + length:
        data += channel.recv(LONGEST_REQUEST)
    return orjson.loads(data[LENGTH.size :]), descriptors[0]


def _send(channel: socket.socket, facts: dict[str, Any], contents: list[bytes] | None = None) -> None:
    head = orjson.dumps(facts)
    channel.sendall(b"".join([LENGTH.pack(len(head)), head, *(contents or [])]))


if __name__ == "__main__":
    main(int(sys.argv[1]))
