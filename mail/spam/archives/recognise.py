"""Which kind of archive some bytes are."""

from __future__ import annotations

from mail.spam.archives.listing import Listing
from mail.spam.archives.rar import NEW, OLD, list_rar
from mail.spam.archives.seven_zip import MAGIC, list_7z

MAX_BEFORE = 64 * 1024
"""Bytes that may stand before an archive: the programs that unpack one look for it behind them."""


def list_archive(data: bytes, *, is_named_so: bool) -> Listing | None:
    """What a RAR or 7z archive holds; None for what is none. One that is named as one may begin later."""
    for magic, lister in ((NEW, list_rar), (OLD, list_rar), (MAGIC, list_7z)):
        place = data.find(magic, 0, MAX_BEFORE if is_named_so else len(magic))
        if place >= 0:
            return lister(data[place:])
    return None
