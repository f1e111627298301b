"""hf:// sources: a folder of a repository on a model hub, through huggingface_hub.

The revision is resolved to a commit first, so that all files are of one commit, and sizes are known and checked
before anything is downloaded. `HF_HUB_OFFLINE` is honoured: then the source is unreachable, and the error says so.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from huggingface_hub import HfApi, hf_hub_download
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RemoteEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from sheaf_engine.agent.errors import AdapterError, Reason
from sheaf_engine.agent.layout import Layout, RemoteFile, check_total, choose
from sheaf_engine.agent.sources import HfSource
from sheaf_engine.agent.transfer import Budget, Outside, disk_error

ANSWER_TIMEOUT = 10.0
_NOT_FOUND = (RepositoryNotFoundError, RevisionNotFoundError, RemoteEntryNotFoundError)


def fetch(source: HfSource, target: Path, layout: Layout, outside: Outside, budget: Budget) -> None:
    """Download the files of the folder into `target`."""
    try:
        commit, listing = _listing(source, outside)
        chosen = choose(layout, listing)
        check_total(chosen, budget.limit)
        for file in chosen:
            budget.spend(_download(source, commit, file, target, outside))
    except AdapterError:
        raise
    except Exception as error:  # noqa: BLE001 - the client raises errors of three HTTP libraries and its own
        _explain(source, error, target)


def _listing(source: HfSource, outside: Outside) -> tuple[str, Sequence[RemoteFile]]:
    hub = HfApi(endpoint=outside.hf_endpoint, token=outside.hf_token)
    info = hub.model_info(source.repository, revision=source.revision, timeout=ANSWER_TIMEOUT, files_metadata=True)
    start = f"{source.folder}/" if source.folder else ""
    siblings = info.siblings or []
    found = [RemoteFile(s.rfilename[len(start) :], s.size or 0) for s in siblings if s.rfilename.startswith(start)]
    return info.sha or source.revision or "main", found


def _download(source: HfSource, commit: str, file: RemoteFile, target: Path, outside: Outside) -> int:
    path = Path(
        hf_hub_download(
            source.repository,
            f"{source.folder}/{file.path}" if source.folder else file.path,
            revision=commit,
            local_dir=target,
            etag_timeout=ANSWER_TIMEOUT,
            token=outside.hf_token,
            endpoint=outside.hf_endpoint,
        )
    )
    final = target / file.path
    if path != final:
        final.parent.mkdir(parents=True, exist_ok=True)
        path.rename(final)
    return final.stat().st_size


def _explain(source: HfSource, error: Exception, target: Path) -> NoReturn:
    where = f"hf://{source.repository}" + (f"@{source.revision}" if source.revision else "")
    text = " ".join(str(error).split())[:300] or type(error).__name__
    status = error.response.status_code if isinstance(error, HfHubHTTPError) else 0
    if isinstance(error, GatedRepoError) or status in {401, 403}:
        raise AdapterError(Reason.SOURCE_DENIED, f"{where} may not be read (is a token needed?): {text}") from error
    if isinstance(error, (*_NOT_FOUND, HFValidationError)) or status == 404:
        raise AdapterError(Reason.SOURCE_NOT_FOUND, f"{where} does not exist or is private: {text}") from error
    if isinstance(error, OfflineModeIsEnabled):
        raise AdapterError(Reason.SOURCE_UNREACHABLE, f"{where}: HF_HUB_OFFLINE forbids to reach the hub") from error
    if (
        isinstance(error, OSError)
        and error.errno is not None
        and not isinstance(error, (LocalEntryNotFoundError, ConnectionError))
    ):
        disk_error(error, target)
    raise AdapterError(Reason.SOURCE_UNREACHABLE, f"{where} cannot be read: {text}") from error
