"""The lists of files of RAR and 7z archives: what they say, and that nothing breaks them or makes them slow."""

from __future__ import annotations

import random
import time
from collections.abc import Callable

import pytest

from mail.spam.archives.listing import MAX_ENTRIES, Listing
from mail.spam.archives.recognise import MAX_BEFORE, list_archive
from mail.spam.archives.seven_zip import MAX_HEADER
from mail.spam.check import NOTHING_KNOWN, judge
from mail.spam.view import MAX_BYTES
from tests.unit.spam_archives import (
    AES,
    new_block,
    new_file,
    new_rar,
    old_block,
    old_file,
    old_rar,
    packed_7z,
    seven_list,
    seven_number,
    seven_zip,
    streams,
)
from tests.unit.spam_mail import with_file, zipped

ENCRYPTED_FILE = b"\x02\x01\x00"
"""A record of a file in RAR 5: two bytes, of the kind that says how it is encrypted."""
WIDE = b"????.exe\0" + bytes((0x04, 0b01010101, 0x35, 0x36, 0x37, 0x38, 0b11000000, 0x02))
"""A name in Cyrillic and the end of the plain one, as RAR 3 packs it."""
HARMLESS = ("a.txt", "b/c.jpg")
EXES = ("a.txt", "b/setup.exe")

MAKERS: dict[str, Callable[[tuple[str, ...]], bytes]] = {
    "RAR 4": lambda names: old_rar(*(old_file(name.replace("/", "\\").encode()) for name in names)),
    "RAR 4 without an end": lambda names: old_rar(*(old_file(name.encode()) for name in names), end=b""),
    "RAR 4 with large files": lambda names: old_rar(*(old_file(name.encode(), 0x8100) for name in names)),
    "RAR 5": lambda names: new_rar(*(new_file(name) for name in names)),
    "7z": lambda names: seven_zip(seven_list(names)),
    "7z with a packed list": lambda names: packed_7z(seven_list(names)),
}
ENCRYPTED: dict[str, bytes] = {
    "RAR 4, the list": old_rar(b"\x11" * 100, flags=0x80),
    "RAR 4, a file": old_rar(old_file(b"a.txt"), old_file(b"b.txt", 0x8004)),
    "RAR 5, the list": b"Rar!\x1a\x07\x01\x00" + new_block(4, bytes(20)) + b"\x11" * 100,
    "RAR 5, a file": new_rar(new_file("a.txt"), new_file("b.txt", ENCRYPTED_FILE)),
    "7z, the list": packed_7z(seven_list(HARMLESS), AES),
    "7z, a file": packed_7z(seven_list(HARMLESS, AES)),
}
CUT: dict[str, bytes] = {
    "RAR 4": old_rar(old_file(b"a.txt"), old_file(b"b.txt")[:-1], end=b""),
    "RAR 4, a block of no length": old_rar(b"\0" * 7),
    "RAR 5": new_rar(new_file("a.txt"))[:-3],
    "RAR 5, a block of no length": new_rar(b"\0" * 9),
    "RAR 5, a number without end": new_rar(b"\xff" * 40),
    "7z": seven_zip(seven_list(HARMLESS))[:-1],
    "7z, only its start": b"7z\xbc\xaf\x27\x1c\x00\x04",
    "7z, another packer": packed_7z(seven_list(HARMLESS), b"\x03\x04\x01"),
    "7z, damaged": packed_7z(seven_list(HARMLESS), properties=b"\xff\0\0\1\0"),
    "7z, a list that is too large": packed_7z(b"\1" + b"\0" * MAX_HEADER),
    "7z, a list in a list in a list": seven_zip(b"\x17" + streams(b"\x00", b"", 60, 60) + b"\x00", b"\x17" + b"\0" * 59),
}


def listed(data: bytes, *, is_named_so: bool = False) -> Listing:
    found = list_archive(data, is_named_so=is_named_so)
    assert found is not None
    return found


def said(name: str, content: bytes) -> set[str]:
    about = {"encrypted_archive", "dangerous_in_archive", "nested_archive", "archive_bomb", "unlisted_archive", "attachment_type_mismatch"}
    return {each.code for each in judge(with_file(name, content), NOTHING_KNOWN, None, clock=lambda: 0.0).indicators} & about


@pytest.mark.parametrize("kind", MAKERS)
def test_the_names_are_read_and_judged_as_those_in_a_zip(kind: str) -> None:
    make, name = MAKERS[kind], "a.rar" if "RAR" in kind else "a.7z"
    found = listed(make(EXES))
    assert ([each.replace("\\", "/") for each in found.names], found.is_encrypted, found.is_cut) == ([*EXES], False, False)
    assert (said(name, make(HARMLESS)), said(name, make(EXES))) == (set(), {"dangerous_in_archive"})
    assert said(name, make(("a.txt", "b.zip"))) == {"nested_archive"}


@pytest.mark.parametrize("kind", ENCRYPTED)
def test_encryption_is_seen_in_the_list_and_in_a_file(kind: str) -> None:
    assert said("a.rar" if "RAR" in kind else "a.7z", ENCRYPTED[kind]) == {"encrypted_archive"}


@pytest.mark.parametrize("kind", CUT)
def test_a_list_that_cannot_be_read_to_its_end_is_said_to_be_so(kind: str) -> None:
    assert said("a.rar" if "RAR" in kind else "a.7z", CUT[kind]) == {"unlisted_archive"}


def test_a_list_that_our_own_limit_cuts_is_nobodys_fault() -> None:
    large = new_rar(new_file("a.txt"), new_block(3, b"\x00", data=b"x" * MAX_BYTES))
    assert said("a.rar", large) == set()
    assert said("a.rar", new_rar(new_file("a.exe")) + large) == {"dangerous_in_archive"}


def test_a_name_that_is_meant_is_read_beside_the_one_for_old_programs() -> None:
    assert listed(old_rar(old_file(WIDE, 0x8200))).names == ["????.exe", "ежзи.exe"]
    moved = b"ABCD.exe\0\x04" + bytes((0b11_000000, 0x82, 0xF4))  # four of the plain ones, a number added to each
    assert listed(old_rar(old_file(moved, 0x8200))).names == ["ABCD.exe", "ежзи"]
    assert listed(old_rar(old_file("ежзи.exe".encode(), 0x8200))).names == ["ежзи.exe"]
    assert listed(old_rar(old_file(b"\x81ber.txt"))).names == ["über.txt"]
    assert said("a.rar", old_rar(old_file(b"note.txt\0\0\0note\0.exe", 0x8200))) == {"dangerous_in_archive"}


def test_an_archive_is_found_behind_what_stands_before_it() -> None:
    archive = new_rar(new_file("a.exe"))
    assert said("a.rar", b"x" * 1000 + archive) == {"dangerous_in_archive"}
    assert said("a.7z", b"x" * 1000 + seven_zip(seven_list(EXES))) == {"dangerous_in_archive"}
    assert list_archive(b"x" * 1000 + archive, is_named_so=False) is None
    assert list_archive(b"x" * MAX_BEFORE + archive, is_named_so=True) is None


def test_an_archive_in_a_zip_is_looked_into() -> None:
    assert said("a.zip", zipped([("b.rar", new_rar(new_file("c.exe")))])) == {"nested_archive", "dangerous_in_archive"}
    assert said("a.zip", zipped([("b.7z", packed_7z(seven_list(HARMLESS, AES)))])) == {"nested_archive", "encrypted_archive"}


def test_what_would_grow_beyond_all_measure_is_a_bomb() -> None:
    assert said("a.rar", old_rar(old_file(b"a.txt", 0x8100, 5 << 32))) == {"archive_bomb"}
    assert said("a.rar", new_rar(new_file("a.txt", unpacked=1 << 40))) == {"archive_bomb"}
    assert said("a.7z", packed_7z(seven_list(HARMLESS, unpacked=1 << 40))) == {"archive_bomb"}


HOSTILE: dict[str, Callable[[], bytes]] = {
    "10,000 blocks of RAR 4": lambda: old_rar(*[old_block(0x75, 0, b"")] * 10_000),
    "10,000 blocks of RAR 5": lambda: new_rar(*[new_block(3, b"")] * 10_000),
    "one block of RAR 4 over and over": lambda: old_rar(old_block(0x75, 0x8000, b"\xf9\xff\xff\xff")),
    "a wide name without end": lambda: old_rar(old_file(b"a\0\0" + b"\xff\xff\xff" * 20_000, 0x8200)),
    "4,000 wide names": lambda: old_rar(*[old_file(b"a" * 10 + b"\0\0" + b"\xff\x7f\x7f\x7f\x7f" * 4, 0x8200)] * 4_000),
    "10,000 records of a file": lambda: new_rar(new_file("a", b"\x01\x05" * 10_000)),
    "records that do not go on": lambda: new_rar(new_file("a", b"\x00" * 10_000)),
    "7z of 10,000 names": lambda: packed_7z(seven_list(["a"] * 10_000)),
    "7z of countless folders": lambda: seven_zip(b"\x01\x04\x07\x0b" + seven_number(1 << 60)),
    "7z of countless parts": lambda: seven_zip(
        b"\x01\x04\x07\x0b\x7f\x00" + b"\x00" * 127 + b"\x0c\x00\x08\x0d" + seven_number(1000) * 127 + b"\x0a\x01" + b"\0" * 2000
    ),
    "7z of a name without end": lambda: seven_zip(b"\x01\x05\x01\x11" + seven_number(1 << 62)),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_archives_are_read_soon_and_their_list_is_bounded(name: str) -> None:
    data = HOSTILE[name]()
    started = time.process_time()
    assert len(listed(data).names) <= 4 * MAX_ENTRIES
    assert time.process_time() - started < 1.0


@pytest.mark.parametrize("seed", range(4))
def test_damaged_archives_break_nothing(seed: int) -> None:
    rng = random.Random(seed)
    sources = [*(make(EXES) for make in MAKERS.values()), *ENCRYPTED.values(), old_rar(old_file(WIDE, 0x8200))]
    for _ in range(500):
        data = bytearray(rng.choice(sources))
        for _ in range(rng.randrange(1, 6)):
            data[rng.randrange(6, len(data))] = rng.choice((0, 0x7F, 0x80, 0xFF, rng.randrange(256)))
        list_archive(bytes(data[: rng.randrange(8, len(data) + 1)]), is_named_so=True)
