"""The list of files in a RAR archive, of the old format (RAR 1.5 to 4) and of RAR 5: headers are in clear unless they are encrypted.

Both formats are a row of blocks, each with a header that says how long it and the data behind it are.
"""

from __future__ import annotations

import struct

from mail.spam.archives.listing import MAX_ENTRIES, Listing

OLD, NEW = b"Rar!\x1a\x07\x00", b"Rar!\x1a\x07\x01\x00"
MAX_BLOCKS = 2 * MAX_ENTRIES
MAX_NAME = 2048
"""Characters: as long as RAR's own may be."""
_BLOCK = struct.Struct("<xxBHH")
"""After a checksum: kind, flags, length of the header."""
_FILE = struct.Struct("<IIBIIBBHI")
"""Of a file, behind that: packed, unpacked, system, checksum, time, version, method, length of the name, attributes."""
_MAIN, _OLD_FILE, _OLD_SERVICE, _OLD_END = 0x73, 0x74, 0x7A, 0x7B
_TWICE = bytes(range(256)) * 2
_FILE5, _ENCRYPTION5, _END5 = 2, 4, 5


def list_rar(data: bytes) -> Listing:
    """Of an archive that begins with OLD or NEW. Never raises: a list that breaks off is cut."""
    listing = Listing()
    try:
        if data.startswith(NEW):
            _read_new(data, len(NEW), listing)
        else:
            _read_old(data, len(OLD), listing)
    except (ValueError, IndexError, struct.error):
        listing.is_cut = True
    return listing


def _read_old(data: bytes, place: int, listing: Listing) -> None:
    for _ in range(MAX_BLOCKS):
        if place == len(data):  # before RAR 3 there was no block for the end
            return
        kind, flags, size = _BLOCK.unpack_from(data, place)
        if kind == _MAIN and flags & 0x80:
            listing.is_encrypted = True
            return
        if kind == _OLD_END:
            return
        behind = 0
        if kind in {_OLD_FILE, _OLD_SERVICE}:
            behind = _old_file(data, place + _BLOCK.size, flags, listing if kind == _OLD_FILE else Listing())
        elif flags & 0x8000:
            behind = int.from_bytes(data[place + 7 : place + 11], "little")
        place = _after(data, place + size, behind, size >= _BLOCK.size)
    raise ValueError("too many blocks")


def _old_file(data: bytes, place: int, flags: int, listing: Listing) -> int:
    """Adds a file to the list. Returns how many bytes of data are behind its header."""
    packed, unpacked, _, _, _, _, _, length, _ = _FILE.unpack_from(data, place)
    place += _FILE.size
    if flags & 0x100:  # the upper halves of the two sizes
        packed |= int.from_bytes(data[place : place + 4], "little") << 32
        unpacked |= int.from_bytes(data[place + 4 : place + 8], "little") << 32
        place += 8
    listing.is_encrypted |= bool(flags & 0x04)
    listing.unpacked += unpacked
    listing.names += _old_names(data[place : place + length], is_wide=bool(flags & 0x200))
    return int(packed)


def _old_names(name: bytes, *, is_wide: bool) -> list[str]:
    """A name, or two where there is one for old programs before the one that is meant."""
    plain, zero, packed = name.partition(b"\0")
    if not is_wide:
        return [_plain(plain)]
    if not zero:
        return [plain.decode("utf-8", "replace")]
    return [_plain(plain), _widened(plain, packed)]


def _plain(name: bytes) -> str:
    try:
        return name.decode()
    except UnicodeDecodeError:
        return name.decode("cp437")


def _widened(plain: bytes, packed: bytes) -> str:
    """A name in UTF-16, packed in steps of two bits: a lower half, one with the common upper half, both halves, a run of the plain name."""
    upper, place, steps, left = packed[0], 1, 0, 0
    name = bytearray()
    while place < len(packed) and len(name) < 2 * MAX_NAME:
        if not left:
            steps, left, place = packed[place], 8, place + 1
        left -= 2
        step = steps >> left & 3
        if step < 2:
            name += bytes((packed[place], upper * step))
            place += 1
        elif step == 2:
            name += packed[place : place + 2]
            place += 2
        else:
            place = _copied(plain, packed, place, name)
    return name.decode("utf-16-le", "replace")


def _copied(plain: bytes, packed: bytes, place: int, name: bytearray) -> int:
    """A run of the plain name, as it is or with a number added to each byte. Returns the place behind it."""
    count, at, added, upper = (packed[place] & 0x7F) + 2, len(name) // 2, 0, 0
    if packed[place] & 0x80:
        added, upper, place = packed[place + 1], packed[0], place + 1
    run = bytearray([0, upper]) * count
    run[::2] = plain[at : at + count].ljust(count, b"\0").translate(_TWICE[added : added + 256])
    name += run
    return place + 1


def _read_new(data: bytes, place: int, listing: Listing) -> None:
    for _ in range(MAX_BLOCKS):
        size, start = _number(data, place + 4)
        kind, at = _number(data, start)
        flags, at = _number(data, at)
        if kind == _ENCRYPTION5:
            listing.is_encrypted = True
        if kind in {_ENCRYPTION5, _END5}:
            return
        extra, at = _number(data, at) if flags & 1 else (0, at)
        behind, at = _number(data, at) if flags & 2 else (0, at)
        if kind == _FILE5:
            _new_file(data[at : start + size], extra, listing)
        place = _after(data, start + size, behind, size > 0)
    raise ValueError("too many blocks")


def _new_file(header: bytes, extra: int, listing: Listing) -> None:
    flags, at = _number(header, 0)
    unpacked, at = _number(header, at)
    _, at = _number(header, at)  # attributes
    at += (4 if flags & 2 else 0) + (4 if flags & 4 else 0)  # time and checksum
    _, at = _number(header, at)  # how it is packed
    _, at = _number(header, at)  # on which system
    length, at = _number(header, at)
    listing.unpacked += unpacked
    listing.names.append(header[at : at + length].decode("utf-8", "replace"))
    at = len(header) - extra
    while 0 < at < len(header):  # records, of which the first kind says how the file is encrypted
        size, start = _number(header, at)
        listing.is_encrypted |= _number(header, start)[0] == 1
        at = start + size


def _after(data: bytes, end: int, behind: int, is_sound: bool) -> int:
    """The place of the next block."""
    if not is_sound or end + behind > len(data):
        raise ValueError("cut short")
    return end + behind


def _number(data: bytes, place: int) -> tuple[int, int]:
    """A number of seven bits to a byte, the lowest first, and the place behind it."""
    value = 0
    for index in range(10):
        byte = data[place + index]
        value |= (byte & 0x7F) << 7 * index
        if byte < 0x80:
            return value, place + index + 1
    raise ValueError("no number")
