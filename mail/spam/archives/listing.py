"""What is known of an archive without unpacking it."""

from __future__ import annotations

from dataclasses import dataclass, field

MAX_ENTRIES = 2_000
"""Files of an archive that are looked at."""


@dataclass(slots=True)
class Listing:
    """`unpacked` is in bytes, as far as the archive tells. A list that is cut was damaged, goes on in another volume, or is packed in a way
    that we do not know; what is in it is true all the same."""

    names: list[str] = field(default_factory=list)
    unpacked: int = 0
    is_encrypted: bool = False
    is_cut: bool = False
