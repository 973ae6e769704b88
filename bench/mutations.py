"""Very many damaged messages through the parser: none may raise, take a second, or leave a text that no database takes."""

from __future__ import annotations

import heapq
import random
import time
from collections import Counter

from bench.workbench import options, table
from mail.mime import parse_message
from tests.unit.mail_corpus import letter, mutated, texts_of

PATIENCE = 1.0
SLOWEST = 5
"""How many are named."""


def main() -> None:
    """Run `--messages` of them; ends with an error at the first that breaks a rule, and says how to make it again."""
    chosen = options(__doc__ or "", messages=100_000, seed=1)
    defects: Counter[str] = Counter()
    slowest: list[tuple[float, int, int]] = []
    started = time.perf_counter()
    for number in range(chosen.messages):
        raw = damaged(chosen.seed, number)
        before = time.thread_time()  # of this thread: what a busy machine does meanwhile is not the parser's
        parsed = parse_message(raw)
        took = time.thread_time() - before
        slowest = heapq.nlargest(SLOWEST, [*slowest, (took, number, len(raw))])
        text = texts_of(parsed)
        broken = "unparsable" in parsed.defects or took > PATIENCE or "\0" in text
        assert not broken, f"damaged({chosen.seed}, {number}): {took:.2f} s, {parsed.defects}"
        text.encode()
        defects.update(parsed.defects or ["none"])
    seconds = time.perf_counter() - started
    rows = [("messages a second, damage included", f"{chosen.messages / seconds:,.0f}")]
    rows += [(f"slow: damaged({chosen.seed}, {number})", f"{took * 1000:.0f} ms, {size} bytes") for took, number, size in slowest]
    table(f"{chosen.messages} damaged messages", [*rows, *((name, str(count)) for name, count in defects.most_common())])


def damaged(seed: int, number: int) -> bytes:
    """The so-manieth message of a seed."""
    return mutated(letter(number % 5000), random.Random(seed * 1_000_000_007 + number))


if __name__ == "__main__":
    main()
