#!/usr/bin/env python3
"""Mailroom's one entry point: makes .venv, installs the hash-locked dependencies, and hands over to cli/.

Needs nothing but Python 3.11 or newer and the network once. The file parses on Python 3.6, so that an old `python3` can look for
a newer one or say what to install. When nothing changed since the last start, nothing is checked but one stamp.
"""

import contextlib
import hashlib
import importlib.util
import os
import shutil
import subprocess
import sys
import time
import typing

ROOT = os.path.dirname(os.path.abspath(__file__))
VENV = os.path.join(ROOT, ".venv")
PYTHON = os.path.join(VENV, "bin", "python")
UNFINISHED = os.path.join(VENV, ".unfinished")  # there while packages are being written; a killed installation leaves it behind
OLDEST = (3, 11)
NEWER = ("python3.14", "python3.13", "python3.12", "python3.11", "python3")
LOCKS = {"runtime": "requirements.lock", "dev": "requirements-dev.lock"}
DEV_COMMANDS = ("test", "check", "faults", "lock")
HOW_TO_GET_PYTHON = "Debian/Ubuntu: apt-get install python3 python3-venv; macOS: brew install python@3.13"
HOW_TO_GET_PIP = "apt-get install python3-venv (Debian/Ubuntu), or put virtualenv or uv on PATH"
began = time.monotonic()


class SetupError(Exception):
    """The set-up cannot go on; the sentence says what to do."""


def main(arguments: "list[str]") -> int:
    try:
        if sys.version_info[:2] < OLDEST:
            run_under_newer_python(arguments)
        kind = "dev" if next((word for word in arguments if not word.startswith("-")), "") in DEV_COMMANDS else "runtime"
        if not is_ready(kind):
            with one_at_a_time():
                if not is_ready(kind):
                    set_up(kind)
        hand_over(arguments)
    except SetupError as error:
        return complain(str(error))
    except OSError as error:
        return complain("%s: %s" % (error.filename or "set-up", error.strerror or error))
    except KeyboardInterrupt:
        return 130
    return 1  # not reached: hand_over() replaces the process


def complain(sentence: str) -> int:
    sys.stderr.write("manage.py: %s\n" % sentence)
    return 1


def say(sentence: str) -> None:
    sys.stderr.write("[%5.1fs] %s\n" % (time.monotonic() - began, sentence))
    sys.stderr.flush()


def run_under_newer_python(arguments: "list[str]") -> None:
    for name in NEWER:
        path = shutil.which(name)
        if path and works([path, "-c", "import sys; sys.exit(sys.version_info[:2] < %r)" % (OLDEST,)]):
            os.execv(path, [path, os.path.abspath(__file__), *arguments])  # noqa: S606
    found = "%d.%d" % sys.version_info[:2]
    raise SetupError("Mailroom needs Python %d.%d or newer, this is %s. %s" % (OLDEST[0], OLDEST[1], found, HOW_TO_GET_PYTHON))


def works(command: "list[str]") -> bool:
    """Whether the command runs and succeeds; its output is nobody's business."""
    try:
        return subprocess.call(command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=clean()) == 0
    except OSError:
        return False


def clean() -> "dict[str, str]":
    """The environment for set-up commands: pip's own settings are respected, what would lead it out of .venv is not."""
    unwanted = ("PYTHONHOME", "PYTHONPATH", "PIP_TARGET", "PIP_PREFIX", "PIP_ROOT", "PIP_REQUIREMENT", "VIRTUAL_ENV")
    kept = {name: value for name, value in os.environ.items() if name not in unwanted}
    return dict(kept, PIP_USER="0", PIP_DISABLE_PIP_VERSION_CHECK="1", PIP_NO_INPUT="1")


# What is installed is what the lock says, for this interpreter: the stamp is the proof.


def stamp_path(kind: str) -> str:
    return os.path.join(VENV, ".stamp-" + kind)


def stamp(kind: str) -> str:
    """The digest of the lock, of .venv's own settings (they name its Python version) and of the interpreter behind it."""
    digest = hashlib.sha256()
    for path in (os.path.join(ROOT, LOCKS[kind]), os.path.join(VENV, "pyvenv.cfg")):
        with open(path, "rb") as file:
            digest.update(file.read())
    binary = os.stat(PYTHON)
    digest.update(repr((os.path.realpath(PYTHON), binary.st_size, int(binary.st_mtime))).encode())
    return digest.hexdigest()


def is_ready(kind: str) -> bool:
    try:
        with open(stamp_path(kind)) as file:
            return file.read() == stamp(kind) and not os.path.exists(UNFINISHED)
    except OSError:
        return False


@contextlib.contextmanager
def one_at_a_time() -> "typing.Iterator[None]":
    """A second start waits for the first to finish the set-up. The lock goes with the process that held it."""
    import fcntl

    directory = os.path.join(ROOT, ".mailroom")
    os.makedirs(directory, exist_ok=True)
    with open(os.path.join(directory, "setup.lock"), "w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say("waiting for another manage.py that is setting up")
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def set_up(kind: str) -> None:
    lock = os.path.join(ROOT, LOCKS[kind])
    if not os.path.exists(lock):
        raise SetupError("%s is missing: restore it from the repository" % LOCKS[kind])
    if os.path.exists(UNFINISHED) or not is_whole():
        make_venv()
    install = installer()
    if install is None:
        make_venv()
        install = installer()
    if install is None:
        raise SetupError("there is no pip to install with: %s" % HOW_TO_GET_PIP)
    say("installing %s (hash-locked)" % LOCKS[kind])
    open(UNFINISHED, "w").close()
    try:
        # The lock is whole. Left to resolve it, pip prefers a newer release for what is also asked for with an extra, and then refuses it.
        run([*install, "--no-deps", "--require-hashes", "-r", lock], "the installation of %s failed" % LOCKS[kind])
    except SetupError:  # refused or rolled back, so what is there is whole
        os.unlink(UNFINISHED)
        raise
    with open(stamp_path(kind) + ".new", "w") as file:
        file.write(stamp(kind))
    os.replace(stamp_path(kind) + ".new", stamp_path(kind))
    os.unlink(UNFINISHED)
    say("ready")


def is_whole() -> bool:
    """Whether .venv has a working interpreter of the version it was made for (a system upgrade may have swapped it)."""
    check = "import sys, os; sys.exit(not os.path.isdir(os.path.join(sys.prefix, 'lib', 'python%d.%d' % sys.version_info[:2])))"
    return os.path.exists(os.path.join(VENV, "pyvenv.cfg")) and works([PYTHON, "-c", check])


def make_venv() -> None:
    base = getattr(sys, "_base_executable", None) or sys.executable
    say("making .venv with Python %d.%d.%d" % sys.version_info[:3])
    if has_module("ensurepip"):
        command = [base, "-m", "venv", "--clear", VENV]
    elif base_pip():
        command = [base, "-m", "venv", "--clear", "--without-pip", VENV]
    elif shutil.which("virtualenv"):
        command = ["virtualenv", "--clear", "--python", base, VENV]
    elif shutil.which("uv"):
        command = ["uv", "venv", "--clear", "--python", base, VENV]
    else:
        raise SetupError("this Python can make no environment with pip: %s" % HOW_TO_GET_PIP)
    run(command, "making .venv failed (%s)" % HOW_TO_GET_PIP)


def installer() -> "list[str] | None":
    """The command that installs into .venv: its own pip, else one of this Python's that can reach into it, else uv."""
    if works([PYTHON, "-m", "pip", "--version"]):
        return [PYTHON, "-m", "pip", "install", "--quiet"]
    if base_pip():
        return [sys.executable, "-m", "pip", "--python", PYTHON, "install", "--quiet"]
    if shutil.which("uv"):
        return ["uv", "pip", "install", "--quiet", "--python", PYTHON]
    return None


def has_module(name: str) -> bool:
    return importlib.util.find_spec(name) is not None


def base_pip() -> bool:
    """Whether this interpreter's pip knows `--python` (since 22.3)."""
    return has_module("pip") and works([sys.executable, "-m", "pip", "--python", sys.executable, "--version"])


def run(command: "list[str]", complaint: str) -> None:
    """Run a set-up command quietly; when it fails, show the end of what it said."""
    try:
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, env=clean(), cwd=ROOT, check=False
        )
    except OSError as error:
        raise SetupError("%s: %s" % (complaint, error)) from error
    if done.returncode:
        said = [line for line in done.stdout.decode(errors="replace").splitlines() if not line.startswith("WARNING")]
        sys.stderr.write("".join("    %s\n" % line for line in said[-12:]))
        raise SetupError(complaint)


def hand_over(arguments: "list[str]") -> None:
    """Become the command line. The root is the working directory and the only entry of PYTHONPATH, so no other `core` gets in."""
    os.chdir(ROOT)
    os.environ["PYTHONPATH"] = ROOT
    os.execv(PYTHON, [PYTHON, "-m", "cli.main", *arguments])  # noqa: S606


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
