"""What a signal handler may set and a main thread may wait for."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import threading
import time

import pytest

from cli.signals import STOP_SIGNALS, Told, stop_signal
from core.settings import ROOT

BOMBARDED = """
import os, random, signal, sys, time
from cli.signals import Told
told = [Told()]
signal.signal(signal.SIGUSR1, lambda *_: told[0].set())
sys.stdout.write("ready")
sys.stdout.flush()
end = time.monotonic() + 1
while time.monotonic() < end:
    told[0] = Told()
    told[0].wait(random.choice([0, 0.0003]))
signal.signal(signal.SIGUSR1, signal.SIG_IGN)
"""


def test_it_stays_set_and_a_timeout_says_so() -> None:
    told = Told()
    assert told.wait(0) is False
    told.set()
    assert [told.wait(0), told.wait(), told.wait(0.1)] == [True, True, True]


def test_who_waits_may_be_woken_without_its_being_set() -> None:
    told = Told()
    told.wake()
    assert [told.wait(60), told.wait(0)] == [False, False]


def test_it_wakes_who_waits() -> None:
    told = Told()
    threading.Timer(0.05, told.set).start()
    assert told.wait(30) is True


def test_a_signal_at_any_moment_of_a_wait_does_not_block_the_process() -> None:
    """threading.Event fails this within seconds: its lock is held while the handler asks for it."""
    with subprocess.Popen([sys.executable, "-c", BOMBARDED], cwd=ROOT, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.read(5) == b"ready"
        deadline = time.monotonic() + 15
        while process.poll() is None and time.monotonic() < deadline:
            process.send_signal(signal.SIGUSR1)
            time.sleep(random.uniform(0.0001, 0.002))
        process.kill()
    assert process.returncode == 0


@pytest.mark.parametrize("number", STOP_SIGNALS)
def test_both_signals_tell(number: signal.Signals) -> None:
    before = {each: signal.getsignal(each) for each in STOP_SIGNALS}
    try:
        told = stop_signal()
        os.kill(os.getpid(), number)
        assert told.wait(30) is True
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)
