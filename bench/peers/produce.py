"""The producer of a Python peer, run in its environment: `python -m bench.peers.produce APP WORD ...`; the answer is JSON.

`fill TASK TEXT RUNS`: as many at a time as the peer can. `singles RUNS THREADS`: one at a time in each thread. `trickle RUNS RATE`: one
at a time, so many a second. bench/noop.py and apps/bull.cjs know the same words.
"""

from __future__ import annotations

import importlib
import json
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

TENANT = "tenant-0042"
TEXT = "hello world 0123456789"
TOGETHER = 1000


def main(words: list[str]) -> int:
    """One producer, its connections opened before the clock starts."""
    app, word, *values = words
    peer = importlib.import_module(f"bench.peers.apps.{app}")
    if word == "fill":
        answer: dict[str, Any] = {"seconds": fill(peer, values[0], values[1], int(values[2]))}
    else:

        def send() -> None:
            peer.send("noop", TENANT, TEXT, repr(time.time()))

        answer = singles(send, int(values[0]), int(values[1])) if word == "singles" else trickle(send, int(values[0]), float(values[1]))
        peer.close()
    print(json.dumps(answer))
    return 0


def fill(peer: Any, task: str, text: str, runs: int) -> float:
    """Seconds until all have been taken: closing sends what the client still holds. Two more go first, to open what is opened late."""
    send_many = getattr(peer, "send_many", None)

    def send(number: int) -> None:
        calls = [(TENANT, text, repr(time.time()))] * number
        if send_many is not None:
            send_many(task, calls)
        else:
            for call in calls:
                peer.send(task, *call)

    send(2)
    began = time.perf_counter()
    for sent in range(0, runs - 2, TOGETHER):
        send(min(TOGETHER, runs - 2 - sent))
    peer.close()
    return time.perf_counter() - began


def singles(send: Callable[[], None], runs: int, threads: int) -> dict[str, Any]:
    """Seconds of all calls together, and of each. Every thread's first call is not counted."""

    def connect(_number: int) -> None:
        send()
        time.sleep(0.5)  # so that no thread takes two and another none

    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(connect, range(threads)))
        began = time.perf_counter()
        calls = list(pool.map(lambda _number: timed(send), range(runs)))
        return {"seconds": time.perf_counter() - began, "calls": calls}


def trickle(send: Callable[[], None], runs: int, rate: float) -> dict[str, Any]:
    """Seconds of each call."""
    send()
    began = time.perf_counter()
    calls = []
    for number in range(runs):
        time.sleep(max(0.0, began + number / rate - time.perf_counter()))
        calls.append(timed(send))
    return {"calls": calls}


def timed(action: Callable[[], None]) -> float:
    """Its seconds."""
    began = time.perf_counter()
    action()
    return time.perf_counter() - began


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
