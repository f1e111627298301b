"""Where `sheaf up` keeps its files; only the user may read them."""

import fcntl
import json
import os
import secrets
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from hashlib import sha256
from pathlib import Path

SOCKET_PATH_LIMIT = 107
LONGEST_SOCKET_NAME = 24
OLD = 7 * 86_400.0


class LayoutError(Exception):
    """The state directory cannot be used; says why and what to do."""


def default_state_dir(port: int) -> Path:
    """Where the state of a local cluster listening on that port is kept."""
    root = os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state"
    return Path(root) / "sheaf" / str(port)


def cache_root() -> Path:
    """Where fetched models and adapters are kept."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "sheaf"


class Layout:
    """The directories and files of one local cluster. Between `open` and its end nobody else may use them."""

    def __init__(self, state: Path) -> None:
        self.state = state.absolute()
        self.logs = self.state / "logs"
        self.configs = self.state / "pods"
        self.fleet = self.state / "fleet.json"
        self.token_file = self.state / "agent-token"
        self.gateway_config = self.state / "gateway.json"
        self.models = cache_root() / "models"
        self.adapters = cache_root() / "adapters" / sha256(str(self.state).encode()).hexdigest()[:12]
        self.sockets = self.state / "run"

    @contextmanager
    def open(self) -> Iterator[None]:
        """Make the directories and a new token, and hold the lock."""
        try:
            self._make_directories()
            lock = os.open(self.state / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise LayoutError(f"cannot use {self.state}: {error.strerror}; choose another with --state-dir") from error
        scratch: Path | None = None
        try:
            self._lock(lock)
            scratch = self._scratch_for_sockets()
            self._write_token()
            self._prune()
            yield
        finally:
            os.close(lock)
            if scratch is not None:
                shutil.rmtree(scratch, ignore_errors=True)

    def note_run(self, run: str, url: str) -> None:
        """Leave word of this run: its mark is in the environment (SHEAF_RUN) of each of its processes."""
        text = json.dumps({"run": run, "pid": os.getpid(), "url": url})
        try:
            write_private(self.state / "run.json", text + "\n")
        except OSError as error:
            raise LayoutError(f"cannot write into {self.state}: {error.strerror}; free some space") from error

    def log(self, pod: str, part: str) -> Path:
        """The log file of a part (engine, agent, fetch) of a pod."""
        return self.logs / f"{pod}.{part}.log"

    def socket(self, pod: str, part: str) -> str:
        """A ZeroMQ address over a Unix socket that only this user reaches."""
        name = sha256(pod.encode()).hexdigest()[:16]
        return f"ipc://{self.sockets / f'{name}.{part}'}"

    def _make_directories(self) -> None:
        for folder in (self.state, self.logs, self.configs, self.sockets):
            folder.mkdir(parents=True, exist_ok=True)
            folder.chmod(0o700)
        for folder in (self.models, self.adapters):
            folder.mkdir(parents=True, exist_ok=True)

    def _lock(self, lock: int) -> None:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise LayoutError(
                f"another `sheaf up` uses {self.state}; end it or choose another with --state-dir"
            ) from error

    def _scratch_for_sockets(self) -> Path | None:
        """Another place for sockets where the state directory's path is too long for the kernel."""
        if len(os.fsencode(self.sockets)) + LONGEST_SOCKET_NAME <= SOCKET_PATH_LIMIT:
            return None
        self.sockets = Path(tempfile.mkdtemp(prefix="sheaf-"))
        return self.sockets

    def _write_token(self) -> None:
        try:
            self.token_file.unlink(missing_ok=True)
            write_private(self.token_file, secrets.token_urlsafe(32) + "\n")
        except OSError as error:
            raise LayoutError(f"cannot write {self.token_file}: {error.strerror}") from error

    def _prune(self) -> None:
        """Forget what pods of long ago left behind."""
        horizon = time.time() - OLD
        for path in (*self.logs.iterdir(), *self.configs.iterdir(), *self.adapters.iterdir()):
            if path.lstat().st_mtime < horizon:
                shutil.rmtree(path, ignore_errors=True) if path.is_dir() else path.unlink(missing_ok=True)


def write_private(path: Path, text: str) -> None:
    """Replace a file at once by one that only this user reads; an OSError leaves the old one as it was."""
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        with os.fdopen(descriptor, "w") as file:
            file.write(text)
        draft.replace(path)
    except OSError:
        draft.unlink(missing_ok=True)
        raise
