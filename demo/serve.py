"""The process of the demo's mail servers: `python -m demo.serve --state FILE`.

It writes its ports into the file when it listens, and ends on SIGTERM, SIGINT or when the process that started it is gone. A file
from an earlier start is read first: the same ports are taken if they are free, and the mail keeps its dates.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import signal
import sys
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from demo.accounts import ACCOUNTS
from demo.flaky_front import FlakyFront
from demo.imap_server import HOST, ImapServer
from demo.smtp_server import SmtpServer

LOOKS_FOR_PARENT = 0.5  # seconds


async def serve(state: Path, *, parent: int) -> None:
    earlier = read_state(state)
    before = datetime.fromisoformat(earlier["before"]) if "before" in earlier else datetime.now(UTC)
    imap = ImapServer(ACCOUNTS, before=before)
    await listen(imap.start, earlier.get("imap_port", 0))
    flaky = FlakyFront(imap.port)
    await listen(flaky.start, earlier.get("flaky_imap_port", 0))
    smtp = SmtpServer(ACCOUNTS, imap)
    await listen(smtp.start, earlier.get("smtp_port", 0))
    ports = {"imap_port": imap.port, "flaky_imap_port": flaky.port, "smtp_port": smtp.port}
    write_state(state, {"pid": os.getpid(), "host": HOST, **ports, "before": before.isoformat()})
    await until_told_to_end(parent)
    for server in (flaky, smtp, imap):
        await server.stop()


async def listen(start: Callable[[int], Awaitable[None]], port: int) -> None:
    """Listen on the port of the last start, else on any free one."""
    try:
        await start(port)
    except OSError:
        await start(0)


async def until_told_to_end(parent: int) -> None:
    told = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, told.set)
    while not told.is_set() and os.getppid() == parent:
        try:
            await asyncio.wait_for(told.wait(), LOOKS_FOR_PARENT)
        except TimeoutError:
            continue


def read_state(path: Path) -> dict[str, Any]:
    """What an earlier start wrote; nothing when there is no readable file."""
    try:
        state = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    return state if isinstance(state, dict) else {}


def write_state(path: Path, state: dict[str, Any]) -> None:
    """Written beside and renamed, so that a reader never sees half of it."""
    draft = path.with_suffix(".new")
    draft.write_text(json.dumps(state))
    draft.replace(path)


def main() -> int:
    parser = argparse.ArgumentParser(description="The demo's IMAP and SMTP servers.")
    parser.add_argument("--state", type=Path, required=True, help="file for the ports, JSON")
    parser.add_argument("--parent", type=int, default=os.getppid(), help="end when this is no longer the parent process")
    options = parser.parse_args()
    asyncio.run(serve(options.state, parent=options.parent))
    return 0


if __name__ == "__main__":
    sys.exit(main())
