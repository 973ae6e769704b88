"""Whether a process still exists, as its neighbours see it."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from runs.process_key import is_gone, key_of

pytestmark = pytest.mark.skipif(
    sys.platform != "linux", reason="elsewhere there is no /proc, a process has no key, and only its heart tells"
)


def test_a_living_process_is_not_gone() -> None:
    key = key_of(os.getpid())
    assert key is not None
    assert not is_gone(key)


def test_a_killed_process_is_gone_before_and_after_its_parent_knows() -> None:
    process = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    key = key_of(process.pid)
    assert key is not None
    assert not is_gone(key)
    process.kill()
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)  # a zombie now
    assert is_gone(key)
    process.wait()
    assert is_gone(key)
    assert key_of(process.pid) is None


def test_the_same_pid_started_at_another_time_is_another_process() -> None:
    key = key_of(os.getpid())
    assert key is not None
    assert is_gone(key.rpartition("/")[0] + "/1")


def test_nobody_says_anything_of_another_machine() -> None:
    assert not is_gone("another-boot/4026531836/1/1")
    assert not is_gone("nonsense")
