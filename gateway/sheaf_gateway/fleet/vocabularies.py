"""What tokens are in bytes, asked of agents once for each digest and shared by all pods that have it.

Bounded: the vocabularies not used by any pod leave first; one is a few megabytes.
"""

import asyncio
import binascii
from base64 import b64decode
from collections import OrderedDict

import msgspec
from sheaf_crds.agent_api import Rendering

from sheaf_gateway.fleet.agents import AgentClient, AgentError
from sheaf_gateway.routing.form import Form

MOST = 64
MOST_TOKENS = 2**20


class Vocabulary(msgspec.Struct, frozen=True):
    """The bytes of each token, by its id, and how requests are rendered."""

    words: list[bytes]
    form: Form


class Vocabularies:
    """The vocabularies that were asked for last."""

    def __init__(self, agents: AgentClient) -> None:
        self._agents = agents
        self._known: OrderedDict[str, Vocabulary] = OrderedDict()
        self._asking = asyncio.Lock()

    async def get(self, agent_url: str, digest: str) -> Vocabulary:
        """The vocabulary of that digest, of this agent if of none before.

        Raises:
            AgentError: The agent does not tell it, or tells another.
        """
        async with self._asking:
            found = self._known.get(digest)
            if found is None:
                told = await self._agents.vocabulary(agent_url)
                if told.digest != digest:
                    raise AgentError(0, "bad_answer", "the agent told another vocabulary than its state names")
                words = await asyncio.to_thread(unpacked, told.tokens)
                found = self._known[digest] = Vocabulary(words, form(told.rendering))
            self._known.move_to_end(digest)
            while len(self._known) > MOST:
                self._known.popitem(last=False)
            return found


def unpacked(tokens: str) -> list[bytes]:
    """The bytes of each token.

    Raises:
        AgentError: They are not written as `sheaf_crds.agent_api.Vocabulary` says.
    """
    try:
        data = b64decode(tokens, validate=True)
    except (binascii.Error, ValueError) as error:
        raise AgentError(0, "bad_answer", "the agent's vocabulary is not base64") from error
    words, place = [], 0
    while place < len(data):
        start = place + 2
        place = start + int.from_bytes(data[place:start], "big")
        words.append(data[start:place])
    if place != len(data) or len(words) > MOST_TOKENS:
        raise AgentError(0, "bad_answer", "the agent's vocabulary is cut off or too large")
    return words


def form(told: Rendering) -> Form:
    """The learned form as routing has it."""
    return Form(text=told.text, begins=told.begins, gaps=told.gaps, ends=told.ends, strip=told.strip)
