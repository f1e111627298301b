"""Composition of one agent from its configuration, and its life as a process: serves until SIGTERM or SIGINT, then
ends cleanly.
"""

import asyncio
import os
import secrets
import signal
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from threading import Event

import structlog
import uvicorn
from fastapi import FastAPI

from sheaf_engine.agent.base_model import read_base_model
from sheaf_engine.agent.config import AgentConfig, read_token
from sheaf_engine.agent.engine_client import EngineClient
from sheaf_engine.agent.errors import AdapterError, ConfigError
from sheaf_engine.agent.memory import Memory
from sheaf_engine.agent.metadata import Metadata
from sheaf_engine.agent.prepare import Preparer
from sheaf_engine.agent.run_dir import Shelf, write_hook
from sheaf_engine.agent.server import create_app
from sheaf_engine.agent.store import Store
from sheaf_engine.agent.supervisor import Supervisor
from sheaf_engine.agent.transfer import Outside

GRACE = 3


def outside_of(config: AgentConfig) -> Outside:
    """What fetches may reach."""
    token = read_token(config.hf_token_file).decode() if config.hf_token_file else os.environ.get("HF_TOKEN") or None
    return Outside(
        file_roots=config.allowed_file_roots,
        allow_private_addresses=config.allow_private_addresses,
        s3_endpoint_url=config.s3_endpoint_url,
        hf_endpoint=config.hf_endpoint,
        hf_token=token,
        https_ca_file=config.https_ca_file,
    )


@dataclass(frozen=True, slots=True)
class Agent:
    """The parts of a running agent."""

    app: FastAPI
    client: EngineClient
    supervisor: Supervisor
    drain_key: str = field(repr=False)


def build(config: AgentConfig, outside: Outside) -> Agent:
    """The agent of that configuration; ConfigError where it cannot work."""
    token = read_token(config.token_file)
    base = read_base_model(config.model_dir)
    try:
        store = Store(config.adapter_dir, config.cache_limit)
    except AdapterError as error:
        raise ConfigError(error.message) from error
    client = EngineClient(config.engine_url, config.load_timeout)
    preparer = Preparer(config.model, store, base, outside, config.max_rank, config.fetch_timeout, Event())
    supervisor = Supervisor(
        client,
        preparer,
        Memory(config.model, config.capacity),
        poll_interval=config.poll_interval,
        startup_timeout=config.startup_timeout,
        catalog_patience=config.catalog_patience,
        shelf=Shelf(config.run_dir),
        model_dir=config.model_dir,
    )
    drain_key = secrets.token_urlsafe(32)
    notices = config.notices
    metadata = Metadata(notices, supervisor.notice, supervisor.metrics) if notices else None
    app = create_app(supervisor, token, config.load_timeout, drain_key.encode(), metadata)
    return Agent(app, client, supervisor, drain_key)


def listening(config: AgentConfig) -> socket.socket:
    """A listening socket; ConfigError where the address cannot be had."""
    host, port = config.address
    try:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        return socket.create_server((host, port), family=family, backlog=256)
    except (OSError, OverflowError) as error:
        raise ConfigError(f"cannot listen on {config.listen}: {error}") from error


class _Server(uvicorn.Server):
    """uvicorn without its own signal handling, which would end the process by the signal again."""

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Leave signals alone."""
        yield


async def serve(config: AgentConfig) -> None:
    """Run the agent until a signal."""
    agent = build(config, outside_of(config))
    with listening(config) as sock:
        configure_logs()
        _leave_hook(config, agent, sock)
        server = _Server(
            uvicorn.Config(
                agent.app,
                log_level="warning",
                access_log=False,
                server_header=False,
                limit_concurrency=512,
                timeout_keep_alive=75,
                timeout_graceful_shutdown=GRACE,
            )
        )
        _stop_on_signals(server, agent.supervisor)
        structlog.get_logger().info("agent listens", address=config.listen, model=config.model)
        await server.serve(sockets=[sock])
    await agent.client.close()


def _leave_hook(config: AgentConfig, agent: Agent, sock: socket.socket) -> None:
    if config.run_dir is not None:
        url = config.own_url(sock.getsockname()[1])
        write_hook(config.run_dir, agent_url=url, engine_url=config.engine_url, key=agent.drain_key)


def _stop_on_signals(server: uvicorn.Server, supervisor: Supervisor) -> None:
    def stop() -> None:
        server.should_exit = True
        supervisor.board.close()

    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop)


def configure_logs() -> None:
    """One JSON object a line on stderr."""
    structlog.configure(
        processors=[
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.format_exc_info,
            structlog.processors.JSONRenderer(),
        ],
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
    )
