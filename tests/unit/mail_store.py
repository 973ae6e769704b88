"""What a database would keep of a mailbox, for the tests of sync."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial

from mail.mailbox import Flags, Identity
from mail.sync import FolderCursor, KnownFolder, SyncBatch


class Store:
    """Flags, identities, bodies and cursors, folder by folder. `rows` gives a stored mail a number of its own that `kept` preserves."""

    def __init__(self) -> None:
        self.flags: dict[str, dict[int, Flags]] = {}
        self.cursors: dict[str, FolderCursor] = {}
        self.identities: dict[str, dict[int, Identity]] = {}
        self.rows: dict[str, dict[int, int]] = {}
        self.bodies: dict[tuple[str, int], bytes] = {}
        self.remote_ids: dict[tuple[str, int], str | None] = {}
        self.flags_were_read = False
        self.looks_up = True

    def known(self) -> Mapping[str, KnownFolder]:
        return {
            name: KnownFolder(
                name,
                self.cursors.get(name),
                partial(self._read, name),
                len(flags),
                partial(self._identities, name),
                partial(self._among, name) if self.looks_up else None,
            )
            for name, flags in self.flags.items()
        }

    def save_all(self, batches: Iterable[SyncBatch]) -> list[SyncBatch]:
        saved = []
        for batch in batches:
            self.save(batch)
            saved.append(batch)
        return saved

    def save(self, batch: SyncBatch) -> None:
        name = batch.folder.name
        flags, identities = self.flags.setdefault(name, {}), self.identities.setdefault(name, {})
        rows = self.rows.setdefault(name, {})
        if batch.is_reset:
            self._renumber(name, batch.kept)
            flags, identities, rows = self.flags[name], self.identities[name], self.rows[name]
        for each in batch.new:
            flags[each.uid] = each.flags
            identities[each.uid] = Identity(each.uid, each.parsed.message_id or None, each.internal_date, each.size)
            rows.setdefault(each.uid, sum(map(len, self.rows.values())) + len(self.bodies))
            self.bodies[name, each.uid] = each.raw
            self.remote_ids[name, each.uid] = each.remote_id
        flags.update({change.uid: change.flags for change in batch.changed if change.uid in flags})
        for uid in batch.gone:
            flags.pop(uid, None), identities.pop(uid, None), rows.pop(uid, None)
        self.cursors[name] = batch.cursor

    def _renumber(self, name: str, kept: Mapping[int, int]) -> None:
        self.flags[name] = {new: self.flags[name][old] for old, new in kept.items()}
        self.identities[name] = {new: replace(self.identities[name][old], uid=new) for old, new in kept.items()}
        self.rows[name] = {new: self.rows[name][old] for old, new in kept.items()}

    def _read(self, name: str) -> Mapping[int, Flags]:
        self.flags_were_read = True
        return dict(self.flags[name])

    def _among(self, name: str, uids: Sequence[int]) -> list[int]:
        return [uid for uid in uids if uid in self.flags[name]]

    def _identities(self, name: str) -> list[Identity]:
        return list(self.identities[name].values())
