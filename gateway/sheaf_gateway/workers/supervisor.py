"""The parent of the workers: holds their listening sockets, starts them, and starts again what dies.

A worker that dies takes its own connections along and nothing else: what waits in its socket's queue is accepted by
the next worker, until a new one is there (after a pause that doubles with every crash in a row). SIGHUP rolls: for one
worker after the other a new process takes over the socket, then the old one ends what it has under way. SIGTERM and
SIGINT end all as one process would end, a second one hurries. Workers end by themselves when their parent is gone.
"""

import asyncio
import contextlib
import errno
import os
import secrets
import signal
import socket
import sys
import tempfile
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import msgspec
import orjson
import structlog

from sheaf_gateway.config import ConfigError, GatewayConfig, parse_listen
from sheaf_gateway.workers.place import Channel, Place
from sheaf_gateway.workers.plan import adopted, backoff, crashed

log = structlog.get_logger(__name__)

START_S = 60.0
GRACE_S = 10.0


class Worker:
    """One process of a place."""

    def __init__(self, index: int, process: asyncio.subprocess.Process, channel: Channel, began: float) -> None:
        self.index = index
        self.process = process
        self.channel = channel
        self.began = began
        self.retired = False
        self.ready = asyncio.Event()
        self.listening = asyncio.Event()
        self.ended: asyncio.Task[int] = asyncio.create_task(process.wait())
        self.heard: asyncio.Task[None] | None = None

    async def listens(self, within: float) -> bool:
        """Wait until it listens, or ends, or the time is over; whether it listens."""
        listening = asyncio.create_task(self.listening.wait())
        await asyncio.wait({listening, self.ended}, timeout=within, return_when=asyncio.FIRST_COMPLETED)
        listening.cancel()
        return self.listening.is_set() and not self.ended.done()

    def signal(self, number: int) -> None:
        """Send a signal, where it still runs."""
        with contextlib.suppress(ProcessLookupError):
            self.process.send_signal(number)


class Supervisor:
    """The workers of one port."""

    def __init__(self, load: Callable[[], GatewayConfig]) -> None:
        self._load = load
        self.config = load()
        self.count = self.config.workers
        self._made: tempfile.TemporaryDirectory[str] | None = None
        self._sockets: list[socket.socket] = []
        self._workers: dict[int, Worker] = {}
        self._retiring: set[Worker] = set()
        self._crashes = [0] * self.count
        self._whole = False
        self._stopping = False
        self._tasks: set[asyncio.Task[None]] = set()
        self._rolling = asyncio.Lock()

    @property
    def room(self) -> Path:
        """The private folder in which workers meet; there is one from `begin` to `close`."""
        if self._made is None:
            raise RuntimeError("`begin` comes first")
        return Path(self._made.name)

    @property
    def port(self) -> int:
        """The port that all listen on."""
        return int(self._sockets[0].getsockname()[1])

    @property
    def pids(self) -> dict[int, int]:
        """The processes by place."""
        return {index: worker.process.pid for index, worker in self._workers.items()}

    async def begin(self) -> bool:
        """Start everybody, the first alone: what stops it stops all; whether it listens.

        Raises:
            ConfigError: The address cannot be listened on.
        """
        self._sockets = bound(self.config.listen, self.count)
        self._made = tempfile.TemporaryDirectory(prefix="sheaf-", ignore_cleanup_errors=True)
        self._furnish()
        first = await self._start(0)
        if not await first.listens(START_S):
            return False
        for index in range(1, self.count):
            await self._start(index)
        for worker in list(self._workers.values()):
            self._attend(worker)
        log.info("workers_started", workers=self.count, port=self.port)
        return True

    async def stop(self) -> None:
        """End all as one process would; call again to hurry."""
        self._stopping = True
        everybody = {*self._workers.values(), *self._retiring}
        for worker in everybody:
            worker.signal(signal.SIGTERM)
        times = self.config.times
        if everybody:
            await asyncio.wait(
                {worker.ended for worker in everybody}, timeout=times.lame_duck + times.shutdown + GRACE_S
            )
        for worker in everybody:
            if not worker.ended.done():
                worker.signal(signal.SIGKILL)
                await worker.ended

    async def close(self) -> None:
        """Leave nothing behind."""
        for task in tuple(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for worker in (*self._workers.values(), *self._retiring):
            await worker.channel.close()
        for sock in self._sockets:
            sock.close()
        if self._made is not None:
            self._made.cleanup()
            self._made = None

    async def roll(self) -> None:
        """Replace one worker after the other, with the configuration as it is now; no request has to fail for it."""
        async with self._rolling:
            if not self._reload():
                return
            for index in range(self.count):
                if self._stopping or not await self._replace(index):
                    return
            log.info("workers_rolled", workers=self.count)

    def _reload(self) -> bool:
        try:
            fresh = self._load()
        except ConfigError as error:
            log.warning("config_refused", reason=str(error), kept="the configuration read before")
            return False
        if (fresh.listen, fresh.workers) != (self.config.listen, self.config.workers):
            log.warning("config_needs_restart", fields=["listen", "workers"], kept="their values read before")
        self.config = fresh.model_copy(update={"listen": self.config.listen, "workers": self.config.workers})
        self._furnish()
        return True

    async def _replace(self, index: int) -> bool:
        before = self._workers.get(index)
        fresh = await self._start(index)
        if not await fresh.listens(START_S):
            log.error("roll_broke_off", worker=index, reason="the new process does not listen")
            fresh.signal(signal.SIGKILL)
            await fresh.ended
            if before is None or before.ended.done():
                self._attend(fresh)
                return False
            await fresh.channel.close()
            self._workers[index] = before
            self._hand_out()
            return False
        self._attend(fresh)
        if before is not None:
            before.retired = True
            self._retiring.add(before)
            before.channel.say("retire")
            self._spawn(self._see_off(before))
        return True

    async def _see_off(self, worker: Worker) -> None:
        await asyncio.wait({worker.ended}, timeout=self.config.times.shutdown + GRACE_S)
        if not worker.ended.done():
            worker.signal(signal.SIGKILL)
            await worker.ended
        self._retiring.discard(worker)
        await worker.channel.close()

    async def _start(self, index: int) -> Worker:
        ours, theirs = socket.socketpair()
        descriptors = tuple(sock.fileno() for sock in self._sockets)
        place = Place(index, self.count, self.room, descriptors, theirs.fileno())
        command = [sys.executable, "-m", "sheaf_gateway", "--config", str(self.room / "config.json")]
        try:
            process = await asyncio.create_subprocess_exec(
                *command, "--place", msgspec.json.encode(place, enc_hook=str).decode(),
                pass_fds=(*descriptors, theirs.fileno()), start_new_session=True,
            )  # fmt: skip
        except BaseException:
            ours.close()
            raise
        finally:
            theirs.close()
        worker = Worker(index, process, await Channel.over(ours), asyncio.get_running_loop().time())
        self._workers[index] = worker
        worker.heard = self._spawn(self._listen_to(worker))
        log.info("worker_started", worker=index, pid=process.pid)
        return worker

    async def _listen_to(self, worker: Worker) -> None:
        while (told := await worker.channel.hear()) is not None:
            if told.word == "listening":
                worker.listening.set()
                self._hand_out()
            elif told.word == "ready":
                worker.ready.set()
                self._whole = self._whole or all(
                    index in self._workers and self._workers[index].ready.is_set() for index in range(self.count)
                )
                self._hand_out()

    def _attend(self, worker: Worker) -> None:
        self._spawn(self._await_end(worker))

    async def _await_end(self, worker: Worker) -> None:
        """Start a worker again that ended without being asked to."""
        status = await worker.ended
        if worker.retired or self._stopping:
            return
        loop = asyncio.get_running_loop()
        await worker.channel.close()
        if self._workers.get(worker.index) is not worker:
            return
        del self._workers[worker.index]
        self._hand_out()
        crashes = self._crashes[worker.index] = crashed(self._crashes[worker.index], loop.time() - worker.began)
        wait = backoff(crashes)
        log.error("worker_died", worker=worker.index, pid=worker.process.pid, status=status, again_in_s=round(wait, 3))
        await asyncio.sleep(wait)
        if not self._stopping and worker.index not in self._workers:
            self._attend(await self._start(worker.index))

    def _hand_out(self) -> None:
        """Tell everybody whose sockets to accept on, and whether all have been ready."""
        alive = {index: worker for index, worker in self._workers.items() if worker.listening.is_set()}
        for index, sockets in adopted(self.count, alive.keys()).items():
            alive[index].channel.say("adopt", sockets)
            if self._whole:
                alive[index].channel.say("whole")

    def _furnish(self) -> None:
        """Write what workers read: the configuration, and secrets that they must share where none are configured."""
        made = {}
        if self.config.salt_secret_file is None:
            made["salt_secret_file"] = self._secret("salt")
        self._secret("gossip")
        config = self.config.model_copy(update=made)
        path = self.room / "config.json"
        path.write_bytes(orjson.dumps(config.model_dump(mode="json", by_alias=True, exclude_none=True)))
        path.chmod(0o600)

    def _secret(self, name: str) -> Path:
        path = self.room / name
        if not path.exists():
            with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
                file.write(secrets.token_hex(32))
        return path

    def _spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task


def bound(listen: str, count: int) -> list[socket.socket]:
    """So many sockets bound to one address, none of them listening yet.

    Raises:
        ConfigError: It is in use, also by other gateways that would share it, or cannot be had.
    """
    host, port = parse_listen(listen)
    wide = socket.AF_INET6 if socket.has_dualstack_ipv6() else socket.AF_INET
    family = wide if host is None else socket.AF_INET6 if ":" in host else socket.AF_INET
    with contextlib.ExitStack() as opened:
        try:
            with _bound(family, host, port, shared=False) as probe:
                port = int(probe.getsockname()[1])
            made = [opened.enter_context(_bound(family, host, port, shared=True)) for _ in range(count)]
        except OSError as error:
            raise ConfigError(f"cannot listen on {listen}: {_why(error)}") from None
        opened.pop_all()
    return made


def _bound(family: socket.AddressFamily, host: str | None, port: int, *, shared: bool) -> socket.socket:
    address = socket.getaddrinfo(host, port, family, socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0][4]
    sock = socket.socket(family, socket.SOCK_STREAM)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if shared:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        if family == socket.AF_INET6 and host is None:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        sock.bind(address)
    except OSError:
        sock.close()
        raise
    return sock


def _why(error: OSError) -> str:
    return "the port is in use" if error.errno == errno.EADDRINUSE else error.strerror or str(error)


async def supervise(load: Callable[[], GatewayConfig]) -> int:
    """Serve with several workers until SIGTERM or SIGINT; the exit status.

    Raises:
        ConfigError: The configuration cannot be used.
    """
    supervisor = Supervisor(load)
    stop, loop = asyncio.Event(), asyncio.get_running_loop()
    rolls: set[asyncio.Task[None]] = set()

    def roll() -> None:
        rolls.add(asyncio.ensure_future(supervisor.roll()))

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    loop.add_signal_handler(signal.SIGHUP, roll)
    begun = asyncio.create_task(supervisor.begin())
    stopped = asyncio.create_task(stop.wait())
    try:
        await asyncio.wait({begun, stopped}, return_when=asyncio.FIRST_COMPLETED)
        if begun.done() and not begun.result():
            return 1
        await stopped
        stop.clear()
        hurry = asyncio.create_task(_hurry(supervisor, stop))
        await supervisor.stop()
        hurry.cancel()
    finally:
        await _abandon(begun, stopped, *rolls)
        await supervisor.stop()
        await supervisor.close()
    return 0


async def _hurry(supervisor: Supervisor, stop: asyncio.Event) -> None:
    await stop.wait()
    await supervisor.stop()


async def _abandon(*tasks: asyncio.Task) -> None:  # type: ignore[type-arg]
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
