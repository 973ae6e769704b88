"""The list of files in a 7z archive (7zFormat.txt of 7-Zip): it is at the end, in clear, packed with LZMA, or encrypted."""

from __future__ import annotations

import lzma
from dataclasses import dataclass

from mail.spam.archives.listing import MAX_ENTRIES, Listing

MAGIC = b"7z\xbc\xaf\x27\x1c"
START = 32
"""Bytes before the packed streams; what they say of the header's place counts from here."""
MAX_HEADER = 256 * 1024
"""Bytes, as it is stored and as it is unpacked."""
MAX_PACKED = 4
"""Times that a header may be packed in another."""
_END, _HEADER, _PROPERTIES, _MORE_STREAMS, _STREAMS, _FILES = 0, 1, 2, 3, 4, 5
_PACKED, _FOLDERS, _PARTS, _SIZES, _CHECKSUMS, _FOLDER, _UNPACKED_SIZES, _COUNTS = 6, 7, 8, 9, 10, 11, 12, 13
_NAMES, _PACKED_HEADER = 17, 23
_AES, _LZMA, _LZMA2, _COPY = b"\x06\xf1\x07\x01", b"\x03\x01\x01", b"\x21", b"\x00"


@dataclass(slots=True)
class _Coder:
    kind: bytes
    properties: bytes
    streams_out: int


@dataclass(slots=True)
class _Streams:
    """Where packed streams are, and what unpacks them: for each folder its coders, and how long what each gives is."""

    place: int
    sizes: list[int]
    folders: list[list[_Coder]]
    unpacked: list[list[int]]

    @property
    def are_encrypted(self) -> bool:
        return any(coder.kind == _AES for folder in self.folders for coder in folder)


def list_7z(data: bytes) -> Listing:
    """Of an archive that begins with MAGIC. Never raises: a list that breaks off is cut."""
    listing = Listing()
    try:
        offset, size = (int.from_bytes(data[place : place + 8], "little") for place in (12, 20))
        if size or len(data) < START:  # of nothing there is no list
            _read(data, _piece(data, START + offset, size), listing)
    except (ValueError, IndexError, lzma.LZMAError):
        listing.is_cut = True
    return listing


def _read(data: bytes, header: bytes, listing: Listing) -> None:
    for _ in range(MAX_PACKED):
        reader = _Reader(header)
        kind = reader.number()
        if kind == _HEADER:
            _read_header(reader, listing)
            return
        if kind != _PACKED_HEADER:
            raise ValueError("no header")
        streams = reader.streams()
        if streams.are_encrypted:
            listing.is_encrypted = True
            return
        header = _unpacked(data, streams)
    raise ValueError("a header in a header in a header")


def _read_header(reader: _Reader, listing: Listing) -> None:
    kind = reader.number()
    if kind == _PROPERTIES:
        while reader.number() != _END:
            reader.skip(reader.number())
        kind = reader.number()
    if kind == _MORE_STREAMS:
        reader.streams()
        kind = reader.number()
    if kind == _STREAMS:
        streams = reader.streams()
        listing.is_encrypted = streams.are_encrypted
        listing.unpacked = sum(max(sizes, default=0) for sizes in streams.unpacked)
        kind = reader.number()
    if kind == _FILES:
        reader.number()  # how many: the names say that too
        while (kind := reader.number()) != _END:
            size = reader.number()
            if kind == _NAMES and reader.number() == 0:  # 0: they are here and not in a stream
                listing.names = reader.take(size - 1).decode("utf-16-le", "replace").split("\0")[:-1][:MAX_ENTRIES]
            else:
                reader.skip(size - (kind == _NAMES))


def _unpacked(data: bytes, streams: _Streams) -> bytes:
    """A packed header. Raises ValueError for one that is packed as no program does, or larger than allowed."""
    [[coder]], [[size]], length = streams.folders, streams.unpacked, streams.sizes[0]
    packed = _piece(data, START + streams.place, length)
    if size > MAX_HEADER:
        raise ValueError("too large")
    if coder.kind == _COPY:
        return packed
    decoder = lzma.LZMADecompressor(lzma.FORMAT_RAW, filters=[_filter(coder, size)])
    return decoder.decompress(packed, max_length=size)


def _filter(coder: _Coder, size: int) -> dict[str, int]:
    """What is to be unpacked is small: so is the dictionary, whatever the archive asks for."""
    found = {"dict_size": max(size, 4096)}
    if coder.kind == _LZMA2:
        return found | {"id": lzma.FILTER_LZMA2}
    if coder.kind != _LZMA:
        raise ValueError("another packer")
    rest, context = divmod(coder.properties[0], 9)
    return found | {"id": lzma.FILTER_LZMA1, "lc": context, "lp": rest % 5, "pb": rest // 5}


def _piece(data: bytes, start: int, size: int) -> bytes:
    if not 0 < size <= min(len(data) - start, MAX_HEADER):
        raise ValueError("cut short, or too large")
    return data[start : start + size]


class _Reader:
    """The parts of a header, one after the other. Raises ValueError or IndexError at the end of the data."""

    def __init__(self, data: bytes) -> None:
        self.data, self.place = data, 0

    def take(self, size: int) -> bytes:
        self.skip(size)
        return self.data[self.place - size : self.place]

    def skip(self, size: int) -> None:
        if not 0 <= size <= len(self.data) - self.place:
            raise ValueError("cut short")
        self.place += size

    def number(self) -> int:
        """As many bytes follow the first as it has ones before its first zero; the rest of it is the highest part."""
        first, value = self.take(1)[0], 0
        for index in range(8):
            mask = 0x80 >> index
            if not first & mask:
                return value | (first & (mask - 1)) << 8 * index
            value |= self.take(1)[0] << 8 * index
        return value

    def count(self) -> int:
        """Of things that take at least a byte each."""
        return self.possible(self.number())

    def possible(self, count: int) -> int:
        if count > len(self.data):
            raise ValueError("more than there can be")
        return count

    def numbers(self, count: int) -> list[int]:
        return [self.number() for _ in range(count)]

    def expect(self, kind: int) -> None:
        if self.number() != kind:
            raise ValueError("something else")

    def checksums(self, count: int) -> list[bool]:
        """Skips them. Returns of which there is one."""
        if self.number():
            known = [True] * self.possible(count)
        else:
            bits = self.take((count + 7) // 8)
            known = [bool(bits[index // 8] & 0x80 >> index % 8) for index in range(count)]
        self.skip(4 * sum(known))
        return known

    def streams(self) -> _Streams:
        """Where they are and how they are packed. Into how many files each is divided is read and forgotten."""
        found = _Streams(0, [], [], [])
        known: list[bool] = []
        while (kind := self.number()) != _END:
            if kind == _PACKED:
                self._packed(found)
            elif kind == _FOLDERS:
                known = self._folders(found)
            elif kind == _PARTS:
                self._parts(known)
            else:
                raise ValueError("something else")
        return found

    def _packed(self, found: _Streams) -> None:
        found.place, count = self.number(), self.count()
        while (kind := self.number()) != _END:
            if kind == _SIZES:
                found.sizes = self.numbers(count)
            elif kind == _CHECKSUMS:
                self.checksums(count)
            else:
                raise ValueError("something else")

    def _folders(self, found: _Streams) -> list[bool]:
        """Returns of which of them there is a checksum."""
        self.expect(_FOLDER)
        count = self.count()
        self.expect(0)  # they are here and not in a stream
        found.folders = [self._folder() for _ in range(count)]
        self.expect(_UNPACKED_SIZES)
        found.unpacked = [self.numbers(sum(coder.streams_out for coder in folder)) for folder in found.folders]
        known = [False] * count
        while (kind := self.number()) != _END:
            if kind != _CHECKSUMS:
                raise ValueError("something else")
            known = self.checksums(count)
        return known

    def _folder(self) -> list[_Coder]:
        coders, streams_in = [], 0
        for _ in range(self.count()):
            form = self.take(1)[0]
            kind = self.take(form & 0x0F)
            inward, outward = (self.count(), self.count()) if form & 0x10 else (1, 1)
            coders.append(_Coder(kind, self.take(self.number()) if form & 0x20 else b"", outward))
            streams_in += inward
        bound = sum(coder.streams_out for coder in coders) - 1
        self.numbers(2 * bound)
        if streams_in - bound > 1:
            self.numbers(streams_in - bound)
        return coders

    def _parts(self, known: list[bool]) -> None:
        counts = [1] * len(known)
        kind = self.number()
        if kind == _COUNTS:
            counts, kind = [self.count() for _ in known], self.number()
        if kind == _SIZES:
            self.numbers(sum(max(count - 1, 0) for count in counts))
            kind = self.number()
        if kind == _CHECKSUMS:
            self.checksums(sum(count for count, is_known in zip(counts, known, strict=True) if count != 1 or not is_known))
            kind = self.number()
        if kind != _END:
            raise ValueError("something else")
