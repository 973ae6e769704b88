"""Very many damaged messages through the parser: none may raise, take a second, or leave a text that no database takes."""

from __future__ import annotations

import random
import time
from collections import Counter

from bench.workbench import options, table
from mail.mime import parse_message
from tests.unit.mail_corpus import letter, mutated, texts_of

PATIENCE = 1.0


def main() -> None:
    """Run `--messages` of them; ends with an error at the first that breaks a rule, and says how to make it again."""
    chosen = options(__doc__ or "", messages=100_000, seed=1)
    defects: Counter[str] = Counter()
    slowest, started = 0.0, time.perf_counter()
    for number in range(chosen.messages):
        seed = chosen.seed * 1_000_000_007 + number
        raw = mutated(letter(number % 5000), random.Random(seed))
        before = time.perf_counter()
        parsed = parse_message(raw)
        took = time.perf_counter() - before
        slowest = max(slowest, took)
        text = texts_of(parsed)
        broken = "unparsable" in parsed.defects or took > PATIENCE or "\0" in text
        assert not broken, f"mutated(letter({number % 5000}), random.Random({seed})): {took:.2f} s, {parsed.defects}"
        text.encode()
        defects.update(parsed.defects or ["none"])
    seconds = time.perf_counter() - started
    rows = [("messages a second, damage included", f"{chosen.messages / seconds:,.0f}"), ("slowest", f"{slowest * 1000:.0f} ms")]
    table(f"{chosen.messages} damaged messages", [*rows, *((name, str(count)) for name, count in defects.most_common())])


if __name__ == "__main__":
    main()
