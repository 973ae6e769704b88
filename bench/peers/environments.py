"""The peers' own environments, outside the repository: made on first use from the pinned versions beside this file.

They lie in ~/.cache/mailroom-bench, or where MAILROOM_BENCH_CACHE says. One whose requirements have changed is made anew.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
PACKAGE = HERE / "package.json"


def cache() -> Path:
    """Where the environments are kept."""
    return Path(os.environ.get("MAILROOM_BENCH_CACHE") or Path.home() / ".cache" / "mailroom-bench")


def prepared(name: str) -> Path:
    """The environment's directory, made if it has to be: a virtual one of this Python, or `node`."""
    requirements = PACKAGE if name == "node" else HERE / "requirements" / f"{name}.txt"
    directory = cache() / name
    stamp = directory / "made-from"
    wanted = hashlib.sha256(requirements.read_bytes() + sys.version.encode()).hexdigest()
    if not stamp.exists() or stamp.read_text() != wanted:
        sys.stderr.write(f"making {directory}\n")
        shutil.rmtree(directory, ignore_errors=True)
        directory.mkdir(parents=True)
        (_make_node if name == "node" else _make_python)(directory, requirements)
        stamp.write_text(wanted)
    return directory


def _make_python(directory: Path, requirements: Path) -> None:
    _run(sys.executable, "-m", "venv", str(directory))
    _run(str(directory / "bin" / "python"), "-m", "pip", "install", "--quiet", "--no-deps", "-r", str(requirements))


def _make_node(directory: Path, package: Path) -> None:
    shutil.copy(package, directory / "package.json")
    _run("npm", "install", "--prefix", str(directory), "--ignore-scripts", "--no-audit", "--no-fund", "--silent")


def _run(*command: str) -> None:
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)}: {done.stdout}{done.stderr}"[-2000:])
