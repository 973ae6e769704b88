"""What is done to files: thumbnails, and the clean-ups of what nobody needs any more. Each tenant's files are its own."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TypedDict

from periodiq import cron

from brokers.queues import Queue
from core.errors import InvalidInputError, NotFoundError, Snooze
from core.settings import get_settings
from core.tenancy import SYSTEM_TENANT, current_identity
from files.limited_child import Allowance, Children, Drawn
from files.retention import Cleaned, Rule, clean, clean_parts
from files.thumbnails import Size, make_thumbnails
from files.tree import parts_of
from runs.enqueue import enqueue
from runs.limits import SoftTimeLimitExceeded
from runs.progress import progress
from runs.task import task
from storage.engine import session_scope
from storage.repositories.tenants import Tenants
from storage.repositories.uploads import Uploads

LONGEST_AGE_DAYS = 36_500
DAY_SECONDS, HOUR_SECONDS = 86_400.0, 3600.0
GOES_ON_SECONDS = 0.5
MOST_CHILDREN = 4
_children = Children(MOST_CHILDREN)


class ThumbnailResult(TypedDict):
    """The picture of the first THUMBNAIL_SIZE; its path is relative to the tenant's files. The other sizes lie beside it."""

    status: str
    thumbnail_path: str
    width: int
    height: int


class CleanupResult(TypedDict):
    """How many files were removed and the bytes they had; on a dry run, what would have been."""

    status: str
    deleted_count: int
    freed_bytes: int


class FileCleanupResult(TypedDict):
    """The runs that were started, or were under way already."""

    status: str
    task_ids: list[str]


@task(queue=Queue.DEFAULT)
def generate_thumbnail(file_path: str, stored_filename: str) -> ThumbnailResult:
    """Draw small pictures of an image among the tenant's files."""
    settings = get_settings()
    with session_scope() as session:
        if any(Uploads(session).is_anothers(name) for name in {stored_filename, file_path}):
            raise NotFoundError("file_path: there is no such file.")
    largest = settings.thumbnail_max_file_mb * 2**20
    made = make_thumbnails(
        settings.files, _owner(), file_path, stored_filename, sizes=settings.thumbnail_sizes, largest=largest, draw=_draw
    )
    return ThumbnailResult(status="success", thumbnail_path=made[0].path, width=made[0].width, height=made[0].height)


@task(queue=Queue.LOW_PRIORITY)
def cleanup_old_files(directory: str, max_age_days: int, dry_run: bool = False) -> CleanupResult:
    """Remove the tenant's files below a directory that are older than so many days and that nothing refers to."""
    parts = parts_of(directory, "directory")
    if not 1 <= max_age_days <= LONGEST_AGE_DAYS:
        raise InvalidInputError(f"max_age_days must be from 1 to {LONGEST_AGE_DAYS}.")
    rule = Rule(max_age_days * DAY_SECONDS, kept=_needed, on_batch=_told, dry_run=dry_run)
    with _in_turns():
        try:
            cleaned = clean(get_settings().files, [*_owner(), *parts], rule, "directory")
        except NotFoundError:
            if parts:
                raise
            cleaned = Cleaned()  # a tenant without files
    return _result(cleaned)


@task(queue=Queue.LOW_PRIORITY)
def cleanup_temporary_files() -> CleanupResult:
    """Remove temporary files that are older than TEMP_MAX_AGE_HOURS, and what writes that never ended have left."""
    settings = get_settings()
    rule = Rule(settings.temp_max_age_hours * HOUR_SECONDS, on_batch=_told)
    with _in_turns():
        try:
            cleaned = clean(settings.temporary, _owner(), rule, "TEMP_DIR")
        except NotFoundError:
            cleaned = Cleaned()  # nobody has put anything there yet
        left = clean_parts(settings.files, _owner(), rule)
    return _result(Cleaned(cleaned.deleted_count + left.deleted_count, cleaned.freed_bytes + left.freed_bytes))


@task(queue=Queue.PERIODIC, periodic=cron("0 2 * * *"))
def periodic_file_cleanup() -> FileCleanupResult:
    """Start a clean-up for every tenant that has files, and one of everybody's temporary files."""
    settings = get_settings()
    with session_scope(system=True) as session:
        owners = [tenant.id for tenant in Tenants(session).all() if (settings.files / tenant.id).is_dir()]
        days = settings.file_cleanup_max_age_days
        task_ids = [
            enqueue(session, cleanup_old_files.options(tenant=tenant_id, unique_key="file_cleanup"), directory=".", max_age_days=days)
            for tenant_id in owners
        ]
        task_ids.append(enqueue(session, cleanup_temporary_files.options(tenant=SYSTEM_TENANT, unique_key="temporary_files")))
    return FileCleanupResult(status="success", task_ids=task_ids)


def _owner() -> list[str]:
    """Where below a root the files of whoever acts lie; the system has all of them."""
    identity = current_identity()
    return [] if identity.is_system else [identity.tenant_id]


def _draw(descriptor: int, sizes: Sequence[Size]) -> list[Drawn]:
    settings = get_settings()
    allowance = Allowance(settings.thumbnail_max_megapixels * 10**6, settings.thumbnail_memory_mb, settings.thumbnail_cpu_seconds)
    return _children.draw(descriptor, sizes, allowance)


def _needed(names: Sequence[str]) -> set[str]:
    with session_scope() as session:
        return Uploads(session).needed(names)


def _told(cleaned: Cleaned) -> None:
    """How many there will be nobody knows: one more than were looked at, until it is over."""
    progress(cleaned.looked_at, cleaned.looked_at + 1, f"{cleaned.deleted_count} removed")


@contextmanager
def _in_turns() -> Iterator[None]:
    """A clean-up that takes longer than a run may goes on in another turn; what is gone stays gone."""
    try:
        yield
    except SoftTimeLimitExceeded:
        raise Snooze(GOES_ON_SECONDS, "There are many files; the clean-up goes on in a moment.") from None


def _result(cleaned: Cleaned) -> CleanupResult:
    return CleanupResult(status="success", deleted_count=cleaned.deleted_count, freed_bytes=cleaned.freed_bytes)
