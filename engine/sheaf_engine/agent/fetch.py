"""One entry to the four kinds of source; a client library is imported only when a source needs it (they are large)."""

from importlib import import_module
from pathlib import Path
from typing import Protocol, cast

from sheaf_engine.agent.layout import Layout
from sheaf_engine.agent.sources import FileSource, HfSource, HttpsSource, S3Source, Source
from sheaf_engine.agent.transfer import Budget, Outside

_MODULES: dict[type, str] = {
    FileSource: "fetch_file",
    HfSource: "fetch_hf",
    S3Source: "fetch_s3",
    HttpsSource: "fetch_https",
}


class _Fetcher(Protocol):
    def fetch(self, source: Source, target: Path, layout: Layout, outside: Outside, budget: Budget) -> None: ...


def fetch(source: Source, target: Path, layout: Layout, outside: Outside, budget: Budget) -> None:
    """Bring the files that `layout` chooses from `source` into `target`; AdapterError says why that failed."""
    module = import_module(f"sheaf_engine.agent.{_MODULES[type(source)]}")
    cast("_Fetcher", module).fetch(source, target, layout, outside, budget)
