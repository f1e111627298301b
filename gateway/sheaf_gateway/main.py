"""The gateway process: everything put together, started and stopped in order."""

import asyncio
import contextlib
import errno
import os
import signal
import socket
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import structlog

from sheaf_gateway import files
from sheaf_gateway.api.figure_readers import SharedToken
from sheaf_gateway.api.gathering import answer
from sheaf_gateway.api.inference import Inference, InferenceRules
from sheaf_gateway.api.keys import MAX_BYTES as MAX_KEYS_BYTES
from sheaf_gateway.api.keys import KeyRing, read_keys
from sheaf_gateway.api.management import management
from sheaf_gateway.api.metrics import Metrics
from sheaf_gateway.api.records import Records
from sheaf_gateway.api.shared import SharedLimits
from sheaf_gateway.api.surface import Surface, refusal_body
from sheaf_gateway.api.warming import WarmingRules
from sheaf_gateway.config import ConfigError, GatewayConfig, parse_listen
from sheaf_gateway.continuation.bounds import MendingRules
from sheaf_gateway.fleet.agents import AGENT_LIMITS, AgentClient
from sheaf_gateway.fleet.capacities import Capacities
from sheaf_gateway.fleet.following import following
from sheaf_gateway.fleet.kvevents import KvEvents
from sheaf_gateway.fleet.loading import AdapterLoader
from sheaf_gateway.fleet.residency import Residency
from sheaf_gateway.fleet.store import FleetStore
from sheaf_gateway.fleet.vocabularies import Vocabularies
from sheaf_gateway.fleet.watch import contents
from sheaf_gateway.peers.agents import SharedAgents
from sheaf_gateway.peers.company import Company
from sheaf_gateway.peers.joining import joined
from sheaf_gateway.proxy.asgi import AsgiBridge
from sheaf_gateway.proxy.exchange import Timeouts
from sheaf_gateway.proxy.limits import ServerLimits
from sheaf_gateway.proxy.server import Server, serve
from sheaf_gateway.proxy.types import App, Request, Responder
from sheaf_gateway.proxy.upstream import Pool
from sheaf_gateway.routing.router import Router
from sheaf_gateway.workers.asking import Colleagues
from sheaf_gateway.workers.place import Place
from sheaf_gateway.workers.post import posted

log = structlog.get_logger(__name__)


class Gateway:
    """One running gateway; made by `start`, ended by `stop`."""

    def __init__(self, config: GatewayConfig, keys: KeyRing, place: Place | None = None) -> None:
        self.config = config
        self._place = place
        limits, times = config.limits, config.times
        self.router = Router(max_blocks=limits.max_prefix_blocks)
        self.store = FleetStore(lambda pod: self.router.ledger(pod).running)
        self._capacities = Capacities(self.store, self.router)
        self._engines = Pool()
        self._agent_pool = Pool(AGENT_LIMITS)
        agents = AgentClient(self._agent_pool, config.agent_token_file)
        self._loader = AdapterLoader(self.store, agents, timeout_s=times.adapter_load)
        self._kv_events = KvEvents(self.store, self.router.index, Vocabularies(agents))
        seed = int.from_bytes(os.urandom(4), "big")
        self._residency = Residency(self.store, agents, seed=seed)
        self._following = following(config, self.store, self._residency, seed, writes=place is None or not place.index)
        self.leaving = False
        self.inference = Inference(
            store=self.store,
            router=self.router,
            pool=self._engines,
            loader=self._loader,
            keys=keys,
            metrics=Metrics(),
            records=Records(limits.max_decisions),
            timeouts=Timeouts(connect_s=times.connect, first_byte_s=times.first_byte, idle_s=times.idle),
            rules=_rules(config),
        )
        self.inference.shared = _shared_limits(config)
        self.inference.shared_token = SharedToken(config.agent_token_file)
        self.inference.whole = place is None
        self.inference.forms = self._kv_events.forms
        self._server: Server | None = None
        self._company: Company | None = None
        self._colleagues: Colleagues | None = None
        self._shared_agents: SharedAgents | None = None
        self._tasks: list[asyncio.Task[None]] = []

    @property
    def port(self) -> int:
        """The port that it listens on."""
        if self._server is None:
            raise RuntimeError("the gateway is not started")
        return self._server.port

    async def run(self) -> None:
        """Listen, and begin to follow the fleet and the keys.

        Raises:
            ConfigError: The address cannot be listened on, or the fleet's source cannot be used.
        """
        await self._following.begin()
        bridge = AsgiBridge(management(self.inference))
        host, port = parse_listen(self.config.listen)
        limits = ServerLimits(
            max_body=self.config.limits.max_body,
            max_connections=_connections(self.config.limits.max_connections),
            keep_alive_s=self.config.times.keep_alive,
        )
        surface = Surface(self.inference, _Leaving(self, bridge))
        own = self._place.socket_of(self._place.index) if self._place else None
        where: dict[str, Any] = {"sock": own} if own else {"host": host, "port": port}
        self._company = await joined(self.config, self.inference, self._place)
        await self._meet()
        try:
            self._server = await serve(surface, **where, limits=limits, error_body=refusal_body)
        except OSError as error:
            raise ConfigError(f"cannot listen on {self.config.listen}: {_why(error)}") from None
        self._tasks.append(asyncio.create_task(self._following.run()))
        if self.config.keys_file is not None:
            self._tasks.append(asyncio.create_task(self._follow_keys(self.config.keys_file)))
        log.info("listening", listen=self.config.listen, port=self.port)

    async def stop(self, deadline_s: float | None = None) -> None:
        """Be a lame duck for a while (not with a deadline of one's own), stop accepting, let requests end within the
        deadline, then end everything."""
        times = self.config.times
        if self._server is not None:
            if deadline_s is None:
                await self._lame_duck(self._server, times.lame_duck)
            await self._server.close(times.shutdown if deadline_s is None else deadline_s)
        if self._colleagues is not None:
            await self._colleagues.close()
        if self._shared_agents is not None:
            await self._shared_agents.close()
        if self._company is not None:
            await self._company.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._following.end()
        await self._residency.stop()
        await self._kv_events.stop()
        await self._loader.stop()
        await self.inference.close()
        await self._engines.close()
        await self._agent_pool.close()

    async def retire(self) -> None:
        """Leave the port to another process; `stop` must follow."""
        if self._colleagues is not None:
            await self._colleagues.close()
        if self._server is not None:
            await self._server.retire(self.config.times.shutdown)

    async def _meet(self) -> None:
        if self._place is not None:
            place, known = self._place, partial(answer, self.inference)
            self._colleagues = self.inference.colleagues = Colleagues(place.room, place.name, place.index, known)
            await self._colleagues.begin()
            self._shared_agents = SharedAgents(place.room, place.name, self._residency)

    async def adopt(self, sockets: Mapping[int, Callable[[], socket.socket]]) -> None:
        """Accept for other workers that cannot (see `proxy.server`)."""
        if self._server is not None:
            await self._server.adopt(sockets)

    async def _lame_duck(self, server: Server, seconds: float) -> None:
        """Serve on, but say that this gateway is not ready, and close connections after their answers."""
        self.leaving = server.closing = True
        await asyncio.sleep(seconds)

    async def _follow_keys(self, path: Path) -> None:
        async for found in contents(path, MAX_KEYS_BYTES):
            try:
                self.inference.keys = await asyncio.to_thread(_parsed_keys, path, found)
            except ConfigError as error:
                log.warning("keys_refused", reason=str(error), kept="the keys read before")


class _Leaving:
    """The management of a gateway, a `proxy.types.App`, that is not ready any more once its gateway leaves."""

    def __init__(self, gateway: Gateway, app: App) -> None:
        self._gateway = gateway
        self._app = app

    def __call__(self, request: Request, responder: Responder) -> Awaitable[None] | None:
        if self._gateway.leaving and request.path == "/readyz":
            responder.reply(503, ((b"content-type", b"application/json"),), b'{"status":"stopping"}')
            return None
        return self._app(request, responder)


async def start(config: GatewayConfig, place: Place | None = None) -> Gateway:
    """A gateway that listens; `place` is which of several workers it is.

    Raises:
        ConfigError: A file or the address cannot be used.
    """
    if not config.fleet_file.parent.is_dir():
        raise ConfigError(f"fleetFile: the folder {config.fleet_file.parent} does not exist")
    gateway = Gateway(config, await _first_keys(config.keys_file), place)
    try:
        await gateway.run()
    except ConfigError:
        await gateway.stop(0.0)
        raise
    return gateway


async def run_until_signal(config: GatewayConfig, place: Place | None = None) -> None:
    """Serve until SIGTERM or SIGINT; a second signal ends what is still under way at once."""
    gateway = await start(config, place)
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    async with posted(gateway, place, stop) as post:
        await stop.wait()
        stop.clear()
        log.info("stopping", lame_duck_s=config.times.lame_duck, deadline_s=config.times.shutdown)
        await _end(gateway, stop, _retired(gateway) if post.retired else gateway.stop())


async def _retired(gateway: Gateway) -> None:
    await gateway.retire()
    await gateway.stop(0.0)


async def _end(gateway: Gateway, stop: asyncio.Event, how: Coroutine[Any, Any, None]) -> None:
    ending = asyncio.create_task(how)
    hurry = asyncio.create_task(stop.wait())
    await asyncio.wait({ending, hurry}, return_when=asyncio.FIRST_COMPLETED)
    hurry.cancel()
    if not ending.done():
        ending.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await ending
        await gateway.stop(0.0)


async def _first_keys(path: Path | None) -> KeyRing:
    if path is None:
        return KeyRing()
    found = await asyncio.to_thread(_read, path)
    return _parsed_keys(path, found)


def _read(path: Path) -> bytes | OSError:
    try:
        return path.read_bytes()
    except OSError as error:
        return error


def _parsed_keys(path: Path, found: bytes | OSError) -> KeyRing:
    if isinstance(found, OSError):
        raise ConfigError(f"keysFile {path}: {_why(found)}")
    try:
        return read_keys(found)
    except ValueError as error:
        raise ConfigError(f"keysFile {path}: {error}") from None


def _connections(wanted: int) -> int:
    allowed = files.raise_limit()
    found = files.for_clients(allowed, wanted)
    if found < wanted:
        mend = "raise the limit of open files"
        log.info("fewer_connections", allowed=found, wanted=wanted, files=allowed, mend=mend)
    return found


def _rules(config: GatewayConfig) -> InferenceRules:
    return InferenceRules(
        max_attempts=config.limits.max_attempts,
        max_inflight_per_pod=config.limits.max_inflight_per_pod,
        max_depth=config.limits.max_json_depth,
        access_log=config.access_log,
        max_held=config.limits.max_held,
        hold_s=config.times.hold,
        stall_s=config.times.stall,
        warming=_warming(config),
        mending=_mending(config),
        salt_secret=_secret("saltSecretFile", config.salt_secret_file).encode() if config.salt_secret_file else b"",
    )


def _warming(config: GatewayConfig) -> WarmingRules:
    limits = config.limits
    return WarmingRules(
        requests=limits.max_warmed,
        tokens=limits.max_warmed_tokens,
        seconds=config.times.warming,
        remembered=limits.max_remembered,
    )


def _mending(config: GatewayConfig) -> MendingRules:
    limits = config.limits
    return MendingRules(
        max_continuations=limits.max_continuations,
        max_wait_s=config.times.continuation,
        max_journal=limits.max_journal,
        max_journals=limits.max_journals,
        max_replay=limits.max_replay,
        starting_per_pod=limits.starting_per_pod,
    )


def _shared_limits(config: GatewayConfig) -> SharedLimits | None:
    shared = config.shared_limits
    if shared is None:
        return None
    url = _secret("sharedLimits.urlFile", shared.url_file)
    try:
        return SharedLimits(url, fail_open=shared.fail_open, timeout_s=shared.timeout, prefix=shared.prefix)
    except ValueError:
        mend = "write redis://[:PASSWORD@]HOST[:PORT][/DATABASE], rediss:// or unix:///PATH"
        raise ConfigError(f"sharedLimits.urlFile {shared.url_file}: not the URL of a Redis; {mend}") from None


def _secret(field: str, path: Path) -> str:
    """The one word in that file."""
    try:
        word = path.read_bytes().decode("ascii").strip()
    except OSError as error:
        raise ConfigError(f"{field} {path}: {_why(error)}") from None
    except UnicodeDecodeError:
        word = ""
    if not word or len(word.split()) > 1:
        raise ConfigError(f"{field} {path}: holds something other than one word of ASCII characters")
    return word


def _why(error: OSError) -> str:
    return "the port is in use" if error.errno == errno.EADDRINUSE else error.strerror or str(error)
