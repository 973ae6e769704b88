"""One API process: `python -m cli.api_process`."""

from __future__ import annotations

import sys

from cli.processes import start_logging
from core.settings import get_settings


def main() -> int:
    """Serves until SIGTERM, then publishes what was accepted last."""
    settings = get_settings()
    start_logging(settings)

    from api.serve import run

    import actors

    run(settings)
    actors.broker.close()
    return 0


if __name__ == "__main__":
    sys.exit(main())
