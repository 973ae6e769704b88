"""Bytes of unsure charset into text that a database takes: the label first (as browsers read labels), then UTF-8, then Windows-1252."""

from __future__ import annotations

import codecs
import re
from functools import lru_cache

_LABELS = {
    # WHATWG: what senders write and what they mean
    "us-ascii": "ascii", "ansi_x3.4-1968": "ascii", "iso-8859-1": "cp1252", "iso8859-1": "cp1252", "latin1": "cp1252", "latin-1": "cp1252",
    "iso_8859-1": "cp1252", "ansi": "cp1252", "iso-8859-9": "cp1254", "latin5": "cp1254", "iso-8859-11": "cp874", "tis-620": "cp874",
    "iso-8859-8-i": "iso-8859-8", "gb2312": "gb18030", "gbk": "gb18030", "x-gbk": "gb18030", "gb_2312-80": "gb18030", "big5": "big5hkscs",
    "shift_jis": "cp932", "shift-jis": "cp932", "sjis": "cp932", "x-sjis": "cp932", "windows-31j": "cp932", "euc-kr": "cp949",
    "ks_c_5601-1987": "cp949", "iso-2022-jp": "iso2022_jp_ext", "unicode-1-1-utf-7": "utf-7", "unicode": "utf-16", "utf8mb4": "utf-8",
}  # fmt: skip
_MULTIBYTE = re.compile(r"^(utf-8|utf-16|utf-32|gb18030|big5|cp932|cp949|euc|iso2022|johab|hz)")
_NO_CHARSETS = {"idna", "punycode", "unicode-escape", "raw-unicode-escape", "undefined", "mbcs", "oem", "palmos"}


@lru_cache(maxsize=512)
def codec_for(label: str | None) -> str | None:
    """The Python codec for a charset label, or None when the label is missing or means nothing. Labels may carry junk: `"utf-8;"`."""
    cleaned = re.sub(r"[^a-z0-9._:+-]", "", (label or "").lower()).strip(".:-+")
    if not cleaned or len(cleaned) > 40:
        return None
    try:
        name = codecs.lookup(_LABELS.get(cleaned, cleaned)).name
    except (LookupError, ValueError):
        return None
    return None if name.replace("_", "-") in _NO_CHARSETS else name


def decode_text(data: bytes, label: str | None) -> tuple[str, bool]:
    """The text and whether the label could be trusted (True: nothing had to be guessed or replaced)."""
    if not label and data.isascii():
        return storable(data.decode("ascii")), True
    codec = codec_for(label)
    if codec not in {None, "ascii"}:
        text = _strict(data, codec)
        if text is not None:
            return storable(text), True
    text = _strict(data, "utf-8")
    if text is not None:
        return storable(text), codec is not None or not label or data.isascii()
    if codec is not None and _MULTIBYTE.match(codec):
        # a few broken characters in otherwise good text: keep the label; mostly broken: it was a single-byte charset after all
        text = _replaced(data, codec)
        broken = text.count("\ufffd")
        if broken <= sum(1 for character in text if character > "\x7f") - broken:
            return storable(text), False
    return storable(data.decode("cp1252", "replace")), False


def storable(text: str) -> str:
    """Without NUL (PostgreSQL refuses it) and without lone surrogates (UTF-8 cannot carry them)."""
    if "\0" in text:
        text = text.replace("\0", "")
    if text.isascii():
        return text
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
    return text


def _strict(data: bytes, codec: str | None) -> str | None:
    try:
        return data.decode(codec or "utf-8")
    except (UnicodeError, LookupError, ValueError):
        return None


def _replaced(data: bytes, codec: str) -> str:
    try:
        return data.decode(codec, "replace")
    except (UnicodeError, LookupError, ValueError):
        return data.decode("latin-1")
