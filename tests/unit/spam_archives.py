"""RAR and 7z archives for the tests of the spam check, put together by hand: lists of files with nothing in them."""

from __future__ import annotations

import lzma
import struct
from collections.abc import Sequence

LZMA = {"id": lzma.FILTER_LZMA1, "lc": 3, "lp": 0, "pb": 2, "dict_size": 1 << 16}
LZMA_PROPERTIES = b"\x5d" + struct.pack("<I", 1 << 16)
AES = b"\x06\xf1\x07\x01"


def old_block(kind: int, flags: int, rest: bytes, data: bytes = b"") -> bytes:
    """Of a RAR archive before RAR 5."""
    return struct.pack("<HBHH", 0, kind, flags, 7 + len(rest)) + rest + data


def old_file(name: bytes, flags: int = 0x8000, unpacked: int = 3) -> bytes:
    """Three bytes long."""
    large = struct.pack("<II", 0, unpacked >> 32) if flags & 0x100 else b""
    fields = struct.pack("<IIBIIBBHI", 3, unpacked & 0xFFFFFFFF, 2, 0, 0, 29, 0x30, len(name), 0)
    return old_block(0x74, flags, fields + large + name, b"abc")


def old_rar(*blocks: bytes, flags: int = 0, end: bytes = old_block(0x7B, 0x4000, b"")) -> bytes:
    """The marker, the main header, and these."""
    return b"Rar!\x1a\x07\x00" + old_block(0x73, flags, bytes(6)) + b"".join(blocks) + end


def seven_bits(value: int) -> bytes:
    """A number as RAR 5 writes it."""
    found = bytearray()
    while value > 0x7F:
        found.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*found, value])


def new_block(kind: int, rest: bytes, extra: bytes = b"", data: bytes = b"") -> bytes:
    """Of a RAR 5 archive."""
    flags = (1 if extra else 0) | (2 if data else 0)
    sizes = (seven_bits(len(extra)) if extra else b"") + (seven_bits(len(data)) if data else b"")
    header = seven_bits(kind) + seven_bits(flags) + sizes + rest + extra
    return bytes(4) + seven_bits(len(header)) + header + data


def new_file(name: str, extra: bytes = b"", unpacked: int = 3) -> bytes:
    """With a time and a checksum."""
    known = name.encode()
    return new_block(2, b"\x06" + seven_bits(unpacked) + b"\x20" + bytes(8) + b"\x00\x01" + seven_bits(len(known)) + known, extra, b"abc")


def new_rar(*blocks: bytes, end: bytes = new_block(5, b"\x00")) -> bytes:
    """The marker, the main header, and these."""
    return b"Rar!\x1a\x07\x01\x00" + new_block(1, b"\x00") + b"".join(blocks) + end


def seven_number(value: int) -> bytes:
    """A number as 7z writes it, always the long way."""
    return b"\xff" + value.to_bytes(8, "little")


def streams(coder: bytes, properties: bytes, unpacked: int, packed: int, place: int = 0) -> bytes:
    """One packed stream, unpacked by one coder."""
    how = bytes([len(coder) | (0x20 if properties else 0)]) + coder + (seven_number(len(properties)) + properties if properties else b"")
    where = b"\x06" + seven_number(place) + b"\x01" + b"\x09" + seven_number(packed) + b"\x00"
    return where + b"\x07\x0b\x01\x00\x01" + how + b"\x0c" + seven_number(unpacked) + b"\x0a\x01" + bytes(4) + b"\x00"


def seven_list(names: Sequence[str], coder: bytes = b"\x00", unpacked: int = 3) -> bytes:
    """A header in clear: one folder of all files, their sizes and checksums, and their names."""
    count = len(names)
    parts = b"\x08\x0d" + seven_number(count) + b"\x09" + b"\x01" * (count - 1) + b"\x0a\x01" + bytes(4 * count) + b"\x00"
    known = b"\x00" + "".join(f"{name}\0" for name in names).encode("utf-16-le")
    files = b"\x05" + seven_number(count) + b"\x19\x02\x00\x00" + b"\x11" + seven_number(len(known)) + known + b"\x00"
    return b"\x01\x04" + streams(coder, b"", unpacked, 3) + (parts if count != 1 else b"") + b"\x00" + files + b"\x00"


def seven_zip(header: bytes, stored: bytes = b"abc") -> bytes:
    """With the header at its end."""
    start = struct.pack("<QQI", len(stored), len(header), 0)
    return b"7z\xbc\xaf\x27\x1c\x00\x04" + bytes(4) + start + stored + header


def packed_7z(header: bytes, coder: bytes = b"\x03\x01\x01", properties: bytes = LZMA_PROPERTIES) -> bytes:
    """With its header packed, as nearly all have it."""
    packed = lzma.compress(header, lzma.FORMAT_RAW, filters=[LZMA])
    return seven_zip(b"\x17" + streams(coder, properties, len(header), len(packed), 3) + b"\x00", b"abc" + packed)
