"""The command line behind ./manage.py: one Typer application, its commands in the other modules of cli/, its exit codes here."""

from __future__ import annotations

import sys

import typer

from cli import client, faults, groups, mail, operations, quality, quickstart, runs, services, tenants, webhooks
from core.errors import MailroomError, NotFoundError, UnavailableError

OK, FAILED, USAGE, NOT_FOUND, UNHEALTHY, UNREACHABLE, INTERRUPTED = 0, 1, 2, 3, 4, 5, 130

app = typer.Typer(
    help="Mailroom: background tasks for e-mail products. Start with: ./manage.py quickstart",
    no_args_is_help=True,
    pretty_exceptions_enable=False,  # they print local variables, and those hold secrets
    context_settings={"help_option_names": ["-h", "--help"]},
)

# Each module adds its commands; what is slow to import, it imports inside them.
app.callback()(client.choose)
for module in (quickstart, services, tenants, runs, groups, operations, mail, webhooks, quality, faults):
    module.register(app)


def exit_code(error: MailroomError) -> int:
    if isinstance(error, NotFoundError):
        return NOT_FOUND
    return UNREACHABLE if isinstance(error, UnavailableError) else FAILED


def main() -> int:
    """Run the command line. An error of ours is one line on stderr and an exit code; anything else is a bug and shows itself."""
    try:
        app(prog_name="./manage.py")
    except MailroomError as error:
        sys.stderr.write(f"manage.py: {error}\n")
        return exit_code(error)
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError:  # the reader of our output has gone: `./manage.py ... | head`
        sys.stderr.close()
        return FAILED
    return OK


if __name__ == "__main__":
    sys.exit(main())
