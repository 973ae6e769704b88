"""Structured logs: one JSON object (or one console line) per event, on stderr, with the bound context in every line.

Libraries' logs take the same path. The last processor before rendering removes what must never be written: values under
secret names, and anything that looks like an address.
"""

from __future__ import annotations

import logging
import re
import sys
from collections.abc import Mapping
from contextvars import ContextVar
from typing import Any, Literal

import structlog
from structlog.contextvars import bind_contextvars, clear_contextvars
from structlog.typing import EventDict, Processor, WrappedLogger

from core.tenancy import bound_identity

SECRET_NAMES = re.compile(r"pass(word|wd)?|secret|token|credential|authorization|cookie|api_?key|signature|body|html|kwargs", re.IGNORECASE)
ADDRESS = re.compile(r"(?<![\w.+%'-])[\w.+%'-]++@[\w-]+(\.[\w-]+)*")  # possessive and anchored: linear on any text
LIBRARY = re.compile(r".*/lib/python3\.\d+/(site-packages/)?")
URL_LOGIN = re.compile(r"(?<=://)[^/@\s]+@")
HIDDEN = "***"
QUIET_LIBRARIES = {
    "pika": "WARNING",
    "asyncio": "WARNING",
    "httpx": "WARNING",
    "httpcore": "WARNING",
    "alembic": "WARNING",
    "uvicorn": "WARNING",
    "uvicorn.access": "WARNING",
    "dramatiq": "WARNING",
    "dramatiq.worker.WorkerThread": "CRITICAL",  # every outcome has a line of ours
}
_run_facts: ContextVar[Mapping[str, Any]] = ContextVar("run_facts", default={})  # noqa: B039  (nobody writes into it)


def configure_logging(level: str = "INFO", log_format: Literal["console", "json"] | None = None) -> None:
    """Sets up structlog and the standard library's root logger. Without a format: console on a terminal, JSON otherwise."""
    chosen = log_format or ("console" if sys.stderr.isatty() else "json")
    shared: list[Processor] = [
        structlog.contextvars.merge_contextvars,
        _add_run,
        structlog.stdlib.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        _add_tenant,
        structlog.stdlib.ExtraAdder(),
        structlog.processors.StackInfoRenderer(),
        _render_exception,
        redact,
    ]
    rendering: list[Processor] = (
        [structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty())]
        if chosen == "console"
        else [structlog.processors.EventRenamer("message"), structlog.processors.JSONRenderer()]
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared, processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *rendering]
        )
    )
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level)
    for name, quiet in QUIET_LIBRARIES.items():
        logging.getLogger(name).setLevel(quiet)
    structlog.configure(
        processors=[structlog.stdlib.filter_by_level, *shared, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.make_filtering_bound_logger(logging.getLevelName(level)),  # below its level a call costs nothing
        cache_logger_on_first_use=True,
    )


def get_logger(name: str) -> structlog.stdlib.BoundLogger:
    """A logger for a module; events are snake_case names, facts are keyword arguments."""
    logger: structlog.stdlib.BoundLogger = structlog.stdlib.get_logger(name)
    return logger


def begin_run(request_id: str | None, facts: Mapping[str, Any]) -> None:
    """These stand in every line of this thread until `end_run`. Bound as one: a variable for each would cost a short run its length."""
    _run_facts.set(facts)
    bind_contextvars(request_id=request_id)


def run_facts() -> Mapping[str, Any]:
    """What stands in every line because of the run that this thread is at."""
    return _run_facts.get()


def end_run() -> None:
    """Nothing is bound any more, whatever the run has bound besides."""
    _run_facts.set({})
    clear_contextvars()


def safe_text(text: str, limit: int = 2000) -> str:
    """A text fit for people and for the record: no addresses, no logins in URLs, not endless."""
    start = text[: 4 * limit].replace("\x00", "")
    cleaned = ADDRESS.sub("<address>", URL_LOGIN.sub("", start))
    return cleaned if len(cleaned) <= limit else cleaned[: limit - 1] + "…"


def redact(_logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
    """Hides values under secret names, and addresses wherever they stand."""
    return {key: _clean(key, value) for key, value in event.items()}


def _clean(key: str, value: Any) -> Any:
    if SECRET_NAMES.search(key) and value is not None:
        return HIDDEN
    if isinstance(value, str):
        return safe_text(value, 8000)
    if isinstance(value, Mapping):
        return {inner: _clean(str(inner), item) for inner, item in value.items()}
    if isinstance(value, list | tuple):
        return [_clean("", item) for item in value]
    return value if isinstance(value, int | float | bool | None) else safe_text(str(value))


def _add_run(_logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
    return {**run_facts(), **event}


def _add_tenant(_logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
    identity = bound_identity()
    if identity is not None:
        event.setdefault("tenant_id", identity.tenant_id)
    return event


def _render_exception(_logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
    """Class, text and the places of the traceback; never local variables or source lines with values."""
    info = event.pop("exc_info", None)
    if info is True:
        info = sys.exc_info()
    if isinstance(info, BaseException):
        info = (type(info), info, info.__traceback__)
    if info and info[0] is not None:
        event["error"] = info[0].__name__
        event["error_text"] = safe_text(str(info[1]))
        event["where"] = where_it_was_raised(info[1])
    return event


def where_it_was_raised(error: BaseException, limit: int = 20) -> list[str]:
    """The frames of an exception as `file:line function`, the outermost first, without any values."""
    places: list[str] = []
    trace = error.__traceback__
    while trace is not None:
        code = trace.tb_frame.f_code
        places.append(f"{_short(code.co_filename)}:{trace.tb_lineno} {code.co_name}")
        trace = trace.tb_next
    return places[-limit:]


def _short(path: str) -> str:
    """A path from the repository root or from site-packages on."""
    in_library = LIBRARY.search(path)
    if in_library:
        return path[in_library.end() :]
    root = __file__.rsplit("/core/", 1)[0] + "/"
    return path.removeprefix(root)
