"""One API process: `python -m cli.api_process`."""

from __future__ import annotations

import argparse
import socket
import sys

from cli.processes import start_logging
from cli.signals import stop_signal
from core.settings import get_settings


def main() -> int:
    """Serves until SIGTERM, then publishes what was accepted last."""
    stop_signal()  # uvicorn raises the signal again when it has stopped; by default that would end us before what is left is published
    settings = get_settings()
    parser = argparse.ArgumentParser(prog="api")
    parser.add_argument("--fd", type=int, help="a listening socket to serve, instead of API_HOST and API_PORT")
    options = parser.parse_args()
    start_logging(settings)

    import actors
    from api.serve import run

    run(settings, listening=socket.socket(fileno=options.fd) if options.fd is not None else None)
    actors.broker.close()
    return 0


if __name__ == "__main__":
    sys.exit(main())
