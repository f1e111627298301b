"""From a catalog entry to checked files on the disk: cache, fetch, digest, inspection, in this order.

Runs in a thread. With a declared digest the cache answers alone. Without one the source is asked, because it may hold
something new; where it cannot be reached, what was fetched from it before is used.
"""

from dataclasses import dataclass, field
from pathlib import Path
from threading import Event

from sheaf_crds.agent_api import CatalogEntry
from sheaf_crds.digest import directory_digest

from sheaf_engine.agent.base_model import BaseModel
from sheaf_engine.agent.errors import AdapterError, Reason
from sheaf_engine.agent.fetch import fetch
from sheaf_engine.agent.inspection import Inspection, inspect_adapter
from sheaf_engine.agent.layout import ADAPTER
from sheaf_engine.agent.plan import Files
from sheaf_engine.agent.sources import parse_source
from sheaf_engine.agent.store import Entry, Store
from sheaf_engine.agent.transfer import Budget, Outside


@dataclass(slots=True)
class Preparer:
    """What preparing needs to know."""

    model: str
    store: Store
    base: BaseModel
    outside: Outside
    max_rank: int
    fetch_timeout: float
    stop: Event = field(default_factory=Event)

    def prepare(self, entry: CatalogEntry, *, cached_only: bool = False) -> Files:
        """Checked files of the entry; AdapterError says why there are none."""
        if entry.name == self.model:
            raise AdapterError(Reason.NAME_TAKEN, f"{entry.name} is the name of the model itself; rename the adapter")
        if entry.digest or cached_only:
            cached = self._cached(entry)
            if cached is not None:
                return cached
        if cached_only:
            raise AdapterError(Reason.FILES_MISSING, "the files are not in the cache any more")
        try:
            return self._fetched(entry)
        except AdapterError as error:
            cached = self._cached(entry) if error.reason is Reason.SOURCE_UNREACHABLE else None
            if cached is None:
                raise
            return cached

    def _cached(self, entry: CatalogEntry) -> Files | None:
        found = self.store.find(entry)
        if found is None or not self.store.sound(found):
            return None
        return _files(found, self._inspect(found.path, entry))

    def _fetched(self, entry: CatalogEntry) -> Files:
        source = parse_source(entry.source)
        with self.store.incoming(entry.name) as folder:
            fetch(source, folder, ADAPTER, self.outside, Budget.of(entry.size_limit, self.fetch_timeout, self.stop))
            digest = directory_digest(folder)
            if entry.digest is not None and digest != entry.digest:
                raise AdapterError(
                    Reason.DIGEST_MISMATCH, f"the source has digest {digest}, but {entry.digest} was declared"
                )
            inspection = self._inspect(folder, entry)
            return _files(self.store.install(entry, folder, digest), inspection)

    def _inspect(self, folder: Path, entry: CatalogEntry) -> Inspection:
        return inspect_adapter(folder, self.base, max_rank=self.max_rank, rank=entry.rank)


def _files(entry: Entry, inspection: Inspection) -> Files:
    return Files(str(entry.path), entry.digest, inspection.rank, entry.size, inspection.note)
