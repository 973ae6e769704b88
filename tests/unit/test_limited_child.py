"""The limited child, for real: what it may not do, how it ends, and what that does to the process that asked it."""

from __future__ import annotations

import os
import signal
import socket
import struct
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from core.errors import PermanentError, TransientError
from files import confinement, drawing, drawing_child, limited_child
from files.limited_child import Allowance, ChildGoneError, Children, LimitedChild
from tests.toys import wait_until
from tests.unit.image_files import picture, png

SIZES = [(32, 32)]
PROBE = """
import os, socket, sys; sys.path.insert(0, sys.argv[1])
from files import confinement
confinement.limit(512)
print(confinement.give_up_system_calls(), flush=True)
def tried(what):
    try: what()
    except OSError as error: print(error.errno, flush=True)
    else: print("done", flush=True)
tried(lambda: os.open("/etc/passwd", os.O_RDONLY))
tried(lambda: socket.socket())
tried(lambda: os.execv("/bin/true", ["true"]))
tried(lambda: os.mkdir("/tmp/never"))
tried(lambda: os.kill(os.getppid(), 0))
tried(lambda: os.unlink("/tmp/never"))
try: bytearray(2**30)
except MemoryError: print("bounded", flush=True)
"""


@pytest.fixture(scope="module")
def child() -> Iterator[LimitedChild]:
    made = LimitedChild(512)
    yield made
    made.close()


@pytest.fixture
def image(tmp_path: Path) -> Iterator[int]:
    descriptor = opened(tmp_path, picture("JPEG"))
    yield descriptor
    os.close(descriptor)


def opened(directory: Path, content: bytes) -> int:
    path = directory / "image"
    path.write_bytes(content)
    return os.open(path, os.O_RDONLY)


def environment_of(pid: int) -> set[bytes]:
    return {line.partition(b"=")[0] for line in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0") if line}


def test_it_draws_again_and_again(child: LimitedChild, image: int) -> None:
    for _ in range(3):
        (made,) = child.draw(image, SIZES, Allowance())
        assert (made.width, made.height, made.kind, made.content[:2]) == (32, 21, "jpg", b"\xff\xd8")
        os.lseek(image, 0, os.SEEK_SET)


def test_it_has_neither_our_environment_nor_our_descriptors(child: LimitedChild) -> None:
    assert environment_of(child.pid) <= {b"LC_ALL", b"MALLOC_ARENA_MAX", b"LC_CTYPE"}
    assert len(list(Path(f"/proc/{child.pid}/fd").iterdir())) <= 5


def test_it_has_limits(child: LimitedChild) -> None:
    limits = {line[:26].strip(): line[26:].split()[0] for line in Path(f"/proc/{child.pid}/limits").read_text().splitlines()[1:]}
    assert limits["Max address space"] == str(512 * 2**20)
    assert (limits["Max file size"], limits["Max core file size"], limits["Max open files"]) == ("0", "0", "32")
    status = Path(f"/proc/{child.pid}/status").read_text()
    assert ("Seccomp:\t2" in status) == child.is_filtered


def test_what_is_given_up_is_gone() -> None:
    probe = subprocess.run([sys.executable, "-c", PROBE, str(limited_child.ROOT)], capture_output=True, text=True, check=False, timeout=60)
    is_filtered, *tried, bounded = probe.stdout.split()
    assert bounded == "bounded", probe.stderr
    if is_filtered == "True":
        assert tried == ["1"] * 6  # EPERM


def test_a_bad_image_is_a_permanent_failure_and_the_child_stays(child: LimitedChild, tmp_path: Path) -> None:
    bad = opened(tmp_path, b"text")
    with pytest.raises(PermanentError, match="The file is no JPEG"):
        child.draw(bad, SIZES, Allowance())
    os.close(bad)
    assert child.is_usable


def test_memory_is_bounded_in_the_child_and_untouched_here(child: LimitedChild, tmp_path: Path) -> None:
    bomb = opened(tmp_path, png(12_000, 12_000, bytes(4 * 12_000 * 100)))  # 576 MB to be decoded
    before = peak_kb()
    with pytest.raises(PermanentError, match="needs more than 512 MB of memory"):
        child.draw(bomb, SIZES, Allowance(max_pixels=10**9, memory_mb=512))
    os.close(bomb)
    assert peak_kb() - before < 30_000
    assert child.is_usable


def peak_kb() -> int:
    return next(int(line.split()[1]) for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))


def test_processor_time_is_bounded() -> None:
    burn = "import sys; sys.path.insert(0, sys.argv[1])\nfrom files import confinement\nconfinement.limit_processor(0)\nwhile True: pass"
    burnt = subprocess.run([sys.executable, "-c", burn, str(limited_child.ROOT)], check=False, timeout=60)
    assert burnt.returncode == -signal.SIGXCPU


def test_a_child_that_was_killed_is_replaced(image: int) -> None:
    children = Children(1)
    children.draw(image, SIZES, Allowance())
    (first,) = children._idle.queue
    os.kill(first.pid, signal.SIGKILL)
    wait_until(lambda: first._process.poll() is not None)
    assert children.draw(image, SIZES, Allowance())
    assert children._idle.queue[0] is not first
    children.close()
    assert children._idle.empty()


class Scripted:
    """A child that dies as told, or draws."""

    def __init__(self, *codes: int, was_fresh: bool = False) -> None:
        self.codes = list(codes)
        self.was_fresh = was_fresh
        self.is_usable = False

    def draw(self, *_: Any) -> list[Any]:
        if self.codes:
            raise ChildGoneError(self.codes.pop(0), was_fresh=self.was_fresh)
        return []

    def close(self) -> int:
        return 0


@pytest.mark.parametrize(
    ("codes", "was_fresh", "kind", "sentence"),
    [
        ([-signal.SIGSEGV], True, PermanentError, "crashes the program"),
        ([-signal.SIGSEGV, -signal.SIGSEGV], False, PermanentError, "crashes the program"),
        ([-signal.SIGXCPU], False, PermanentError, "more than 20 s of processor time"),
        ([-signal.SIGKILL], True, TransientError, "was killed"),
    ],
)
def test_who_is_to_blame_for_a_dead_child(
    codes: list[int], was_fresh: bool, kind: type[Exception], sentence: str, image: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    child = Scripted(*codes, was_fresh=was_fresh)
    monkeypatch.setattr(limited_child, "LimitedChild", lambda _memory: child)
    with pytest.raises(kind, match=sentence):
        Children(1).draw(image, SIZES, Allowance())
    assert not child.codes


def test_an_image_that_meets_a_broken_child_gets_another(image: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limited_child, "LimitedChild", lambda _memory: child)
    child = Scripted(-signal.SIGSEGV)
    assert Children(1).draw(image, SIZES, Allowance()) == []


def test_a_child_that_does_not_answer_is_given_up(image: int, monkeypatch: pytest.MonkeyPatch) -> None:
    child = LimitedChild(512)
    os.kill(child.pid, signal.SIGSTOP)
    monkeypatch.setattr(limited_child, "WAIT_FACTOR", 0.01)
    with pytest.raises(TransientError, match="this machine is too busy"):
        child.draw(image, SIZES, Allowance())
    assert not child.is_usable


@pytest.mark.parametrize(
    "answer", [b"\0\0\0\2[]", b"\0\0\0\1x", b"\0\0\0\2{}", b'\0\0\0\x53{"pictures":[{"width":1,"height":1,"kind":"exe","bytes":1}]}']
)
def test_a_child_that_talks_nonsense_is_as_good_as_gone(answer: bytes, image: int) -> None:
    child = LimitedChild(512)
    ours, theirs = socket.socketpair()
    child._channel.close()
    child._channel = ours
    theirs.sendall(answer)
    theirs.shutdown(socket.SHUT_WR)
    with pytest.raises(ChildGoneError):
        child.draw(image, SIZES, Allowance())
    theirs.close()


def test_the_child_ends_when_its_parent_has_gone(monkeypatch: pytest.MonkeyPatch) -> None:
    ours, theirs = socket.socketpair()
    monkeypatch.setattr(drawing_child, "IDLE_SECONDS", 0.01)
    theirs.settimeout(0.01)
    assert drawing_child._receive(theirs) is None  # nothing was wanted for a while
    ours.close()
    assert drawing_child._receive(theirs) is None
    theirs.close()


def test_requests_are_answered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The child's own code, without its limits."""
    monkeypatch.setattr(confinement, "limit_processor", lambda _seconds: None)
    drawing.get_ready()
    wanted = {"sizes": [[10, 10]], "max_pixels": 10**6, "seconds": 5}
    facts, contents = drawing_child._answer(wanted, opened(tmp_path, picture("PNG")), 512)
    assert (facts["pictures"][0]["width"], len(contents)) == (10, 1)
    assert drawing_child._answer(wanted, opened(tmp_path, b""), 512) == ({"error": "The file is empty."}, [])
    monkeypatch.setattr(drawing, "draw", out_of_memory)
    assert "more than 512 MB" in drawing_child._answer(wanted, opened(tmp_path, b""), 512)[0]["error"]
    ours, theirs = socket.socketpair()
    drawing_child._send(ours, {"a": 1}, [b"xyz"])
    assert theirs.recv(100) == b'\0\0\0\7{"a":1}xyz'
    ours.close()
    theirs.close()


def out_of_memory(*_: Any) -> None:
    raise MemoryError


def test_the_filter_refuses_by_number_and_allows_the_rest() -> None:
    """The filter's instructions, worked through as the kernel does."""
    arm, x86 = 0xC00000B7, 0xC000003E
    refuse, allow, kill = 0x00050001, 0x7FFF0000, 0x80000000

    def verdict(program: bytes, architecture: int, number: int) -> int:
        lines, at, loaded = list(struct.iter_unpack("HBBI", program)), 0, 0
        while True:
            code, if_true, if_false, value = lines[at]
            if code == 0x20:
                loaded, at = (architecture if value == 4 else number), at + 1
            elif code == 0x06:
                return int(value)
            else:
                at += 1 + (if_true if (loaded >= value if code == 0x35 else loaded == value) else if_false)

    for machine, refused, allowed in (
        ("x86_64", (2, 257, 41, 59, 434, 0x40000000), (0, 1, 9, 47)),
        ("aarch64", (56, 198, 221, 434), (63, 64)),
    ):
        architecture, numbers = confinement._REFUSED[machine]
        program = confinement._program(architecture, numbers)
        assert {verdict(program, architecture, number) for number in refused} == {refuse}
        assert {verdict(program, architecture, number) for number in allowed} == {allow}
        assert verdict(program, arm if architecture == x86 else x86, 0) == kill


def test_what_it_gives_up_is_asked_of_the_kernel_in_order(monkeypatch: pytest.MonkeyPatch) -> None:
    """The child's whole course with a kernel that only takes notes: really giving up would end this process' other tests."""
    asked: list[str] = []

    class Kernel:
        def prctl(self, option: int, *_: Any) -> int:
            asked.append({1: "die with parent", 38: "no new privileges", 22: "filter"}[option])
            return 0

    ours, theirs = socket.socketpair()
    monkeypatch.setattr(confinement.ctypes, "CDLL", lambda *_, **__: Kernel())  # type: ignore[attr-defined]
    monkeypatch.setattr(confinement.resource, "setrlimit", lambda *_: asked.append("limit"))  # type: ignore[attr-defined]
    monkeypatch.setattr(os, "dup", lambda _descriptor: theirs.detach())
    descriptor, request = os.memfd_create("image"), b'{"sizes":[[8,8]],"max_pixels":1000,"seconds":5}'
    head, tail = request[:10], request[10:]
    socket.send_fds(ours, [len(request).to_bytes(4, "big") + head], [descriptor])
    ours.sendall(tail)
    ours.shutdown(socket.SHUT_WR)
    drawing_child.main(512)
    ours.settimeout(20)
    answers = b""
    while b"empty" not in answers:
        answers += ours.recv(1000)
    assert b'{"ready":true' in answers
    assert asked[0] == "die with parent"
    assert asked.count("limit") == 5
    assert asked[-1] == "limit"  # of the processor, for the one image
    monkeypatch.setattr(confinement.platform, "machine", lambda: "z80")  # type: ignore[attr-defined]
    assert confinement.give_up_system_calls() is False
    os.close(descriptor)
    ours.close()
