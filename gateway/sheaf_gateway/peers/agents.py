"""The workers of a machine divide the agents among themselves: each asks its share and passes on what it learns.

Whose an agent is follows from the names of the workers that are there (rendezvous hashing), so nobody has to lead, and
when one goes its share falls to the others alone. What is lost on the way is asked for anew by whoever misses it.
"""

import asyncio
from pathlib import Path

import msgspec
import xxhash
from pydantic import ValidationError
from sheaf_crds.agent_api import AgentState

from sheaf_gateway.fleet.residency import PollKey, Residency
from sheaf_gateway.peers.links import Siblings

MAX_REPORT = 2**18
LOOK_S = 1.0
SUFFIX = ".agents"


class _Report(msgspec.Struct, array_like=True, frozen=True, forbid_unknown_fields=True):
    """What an agent said, as JSON; None: it does not answer."""

    pod: str
    uid: str
    url: str
    state: bytes | None


class SharedAgents:
    """A `fleet.residency.Sharing` among the workers that meet in a room."""

    def __init__(self, room: Path, name: str, residency: Residency) -> None:
        self._residency = residency
        self._name = name
        self._siblings = Siblings(room, name, self._hear, suffix=SUFFIX, max_size=MAX_REPORT)
        self._decoder = msgspec.msgpack.Decoder(_Report)
        self._looking = asyncio.create_task(self._look())
        residency.sharing = self

    async def close(self) -> None:
        """Ask for oneself from now on."""
        self._residency.sharing = None
        self._looking.cancel()
        await asyncio.gather(self._looking, return_exceptions=True)
        self._siblings.close()

    def mine(self, pod: str) -> bool:
        """Whether this worker asks the pod's agent for all."""
        own = _lot(self._name, pod)
        return all(own > _lot(name, pod) for name in self._siblings.names)

    def learnt(self, key: PollKey, state: AgentState | None) -> None:
        """Pass on what an agent said, or (None) that it does not answer."""
        if self._siblings.targets:
            said = None if state is None else state.model_dump_json(by_alias=True, exclude_defaults=True).encode()
            self._siblings.send(msgspec.msgpack.encode(_Report(*key, said)))

    async def _look(self) -> None:
        while True:
            self._siblings.look()
            await asyncio.sleep(LOOK_S)

    def _hear(self, data: bytes) -> None:
        try:
            told = self._decoder.decode(data)
            state = None if told.state is None else AgentState.model_validate_json(told.state)
        except (msgspec.MsgspecError, ValidationError):
            return
        self._residency.hear((told.pod, told.uid, told.url), state)


def _lot(worker: str, pod: str) -> tuple[int, str]:
    return xxhash.xxh3_64_intdigest(f"{worker}\0{pod}".encode()), worker
