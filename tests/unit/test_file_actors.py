"""The file tasks: each tenant's files are its own, and results are as the contract has them."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

import actors.files
from actors.files import cleanup_old_files, cleanup_temporary_files, generate_thumbnail, periodic_file_cleanup
from core.errors import InvalidInputError, NotFoundError, PermanentError, Snooze
from core.settings import get_settings
from core.tenancy import SYSTEM, SYSTEM_TENANT, Identity, acting_as
from files.retention import Cleaned
from runs.limits import SoftTimeLimitExceeded
from storage.models import TaskRun
from storage.repositories.outbound import Attachments
from tests.unit.actor_world import Actors, acting
from tests.unit.image_files import picture

__all__ = ["acting"]


def put(who: Identity, path: str, content: bytes = b"x", *, old: bool = False, root: Path | None = None) -> Path:
    file = (root or get_settings().files) / who.tenant_id / path
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(content)
    if old:
        os.utime(file, (1, 1))
    return file


def upload(acting: Actors, who: Identity, name: str) -> None:
    with acting.record.session(who) as session:
        Attachments(session).add(filename="f", content_type="image/png", size=1, stored_filename=name)


def test_a_thumbnail_is_made_for_real(acting: Actors) -> None:
    ann = acting.record.people.ann
    put(ann, "photo", picture("PNG", (600, 300)))
    with acting_as(ann):
        made = generate_thumbnail("photo", "photo")
    path = made.pop("thumbnail_path")  # type: ignore[misc]
    assert made == {"status": "success", "width": 256, "height": 128}
    assert (get_settings().files / ann.tenant_id / path).read_bytes()[:2] == b"\xff\xd8"
    put(ann, "text.png", b"text")
    with acting_as(ann), pytest.raises(PermanentError, match=r"The file is no JPEG, PNG, WebP, GIF, AVIF or HEIC image\."):
        generate_thumbnail("text.png", "text.png")


def test_another_tenants_file_and_another_users_upload_are_not_there(acting: Actors) -> None:
    people = acting.record.people
    put(people.ann, "photo", picture("PNG"))
    upload(acting, people.bob, "photo")
    for who, path in ((people.gus, "photo"), (people.gus, f"{people.ann.tenant_id}/photo"), (people.ann, "photo")):
        with acting_as(who), pytest.raises(NotFoundError):
            generate_thumbnail(path, "photo")
    with acting_as(people.gus), pytest.raises(InvalidInputError):
        generate_thumbnail(f"../{people.ann.tenant_id}/photo", "photo")
    with acting_as(people.acme):
        assert generate_thumbnail("photo", "photo")["status"] == "success"


def test_old_files_go_but_for_those_that_rows_name(acting: Actors) -> None:
    people = acting.record.people
    kept, gone, others = (put(who, name, old=True) for who, name in ((people.bob, "kept"), (people.ann, "gone"), (people.gus, "kept")))
    upload(acting, people.bob, "kept")
    with acting_as(people.ann):
        assert cleanup_old_files(".", 1, dry_run=True) == {"status": "success", "deleted_count": 1, "freed_bytes": 1}
        assert cleanup_old_files(".", 1) == {"status": "success", "deleted_count": 1, "freed_bytes": 1}
    assert (kept.exists(), gone.exists(), others.exists()) == (True, False, True)
    with acting_as(people.gus):
        assert cleanup_old_files(".", 1)["deleted_count"] == 1  # the same name, but no row of theirs


def test_the_system_cleans_below_everybody(acting: Actors) -> None:
    put(acting.record.people.gus, "a", old=True)
    upload(acting, acting.record.people.ann, "b")
    put(acting.record.people.ann, "b", old=True)
    with acting_as(SYSTEM):
        assert cleanup_old_files(".", 1)["deleted_count"] == 1


@pytest.mark.parametrize(("directory", "days"), [("../x", 5), ("/", 5), ("", 5), (".", 0), (".", -1), (".", 10**9), ("a\0", 1)])
def test_what_is_wrong_is_refused(acting: Actors, directory: str, days: int) -> None:
    with acting_as(acting.record.people.ann), pytest.raises(InvalidInputError):
        cleanup_old_files(directory, days)


def test_a_tenant_without_files_has_nothing_to_clean(acting: Actors) -> None:
    with acting_as(acting.record.people.ann):
        assert cleanup_old_files(".", 5)["deleted_count"] == cleanup_temporary_files()["deleted_count"] == 0
        put(acting.record.people.ann, "a")
        with pytest.raises(NotFoundError):
            cleanup_old_files("nowhere", 5)


def test_temporary_files_and_abandoned_parts_go(acting: Actors) -> None:
    ann, gus = acting.record.people.ann, acting.record.people.gus
    temporary = get_settings().temporary
    put(ann, "t", b"four", old=True, root=temporary)
    others = put(gus, "t", old=True, root=temporary)
    put(ann, "thumbnails/aa/.x.jpg.1234.part", b"two", old=True)
    picture_left = put(ann, "thumbnails/aa/x.jpg", old=True)
    with acting_as(ann):
        assert cleanup_temporary_files() == {"status": "success", "deleted_count": 2, "freed_bytes": 7}
    assert others.exists()
    assert picture_left.exists()
    with acting_as(SYSTEM):
        assert cleanup_temporary_files()["deleted_count"] == 1


def test_the_nightly_clean_up_starts_one_for_each_tenant_with_files(acting: Actors) -> None:
    ann = acting.record.people.ann
    put(ann, "a")
    with acting_as(SYSTEM):
        first, again = periodic_file_cleanup(), periodic_file_cleanup()
    assert first == again
    with acting.record.session() as session:
        runs = {run.task: (run.tenant_id, run.args) for run in session.query(TaskRun)}
    assert runs == {
        "cleanup_old_files": (ann.tenant_id, {"directory": ".", "max_age_days": 90, "dry_run": False}),
        "cleanup_temporary_files": (SYSTEM_TENANT, {}),
    }


def test_a_clean_up_that_takes_too_long_goes_on_later(acting: Actors, monkeypatch: pytest.MonkeyPatch) -> None:
    def endless(*_: object) -> Cleaned:
        raise SoftTimeLimitExceeded

    monkeypatch.setattr(actors.files, "clean", endless)
    with acting_as(acting.record.people.ann):
        with pytest.raises(Snooze, match="goes on in a moment"):
            cleanup_old_files(".", 5)
        with pytest.raises(Snooze, match="goes on in a moment"):
            cleanup_temporary_files()
