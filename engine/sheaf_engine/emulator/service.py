"""What the emulator does for a request, whatever carries it: names, prompts, generations, adapters."""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import Sequence
from hashlib import blake2b, shake_128

from sheaf_engine.emulator.adapters import AdapterRegistry, ServedAdapter
from sheaf_engine.emulator.core import EngineCore
from sheaf_engine.emulator.errors import ApiError, bad_parameter
from sheaf_engine.emulator.faults import Fault
from sheaf_engine.emulator.generation import Ending, Generation, Prompt, Times
from sheaf_engine.emulator.options import Options
from sheaf_engine.emulator.protocol import ChatBody, Message, Sampling
from sheaf_engine.emulator.speech import Speaker
from sheaf_engine.emulator.tokenizer import Tokenizer, decode
from sheaf_engine.emulator.wire import Usage
from sheaf_engine.timing import BlockHashes

EMBEDDING_SIZE = 384


class Answer:
    """The generations that answer one request."""

    def __init__(self, core: EngineCore, choices: int = 1) -> None:
        self.generations: list[Generation] = []
        self._core = core
        self._choices = choices
        self._news = asyncio.Event()

    def wake(self) -> None:
        """Something can be read."""
        self._news.set()

    def start(self) -> None:
        """Queue all generations, or none.

        Raises:
            ApiError: 400 where the engine refuses one.
        """
        try:
            for generation in self.generations:
                self._core.start(generation)
        except ValueError as error:
            self.abort()
            raise ApiError(400, str(error)) from error

    def abort(self) -> None:
        """Drop what has not ended."""
        for generation in self.generations:
            self._core.abort(generation)

    @property
    def done(self) -> bool:
        """Whether all have ended."""
        return all(generation.finish_reason is not None for generation in self.generations)

    def usage(self) -> Usage:
        """Token counts; a prompt counts once however many choices it has."""
        prompt = sum(len(generation.prompt.tokens) for generation in self.generations[:: self._choices])
        completion = sum(generation.generated for generation in self.generations)
        return Usage(prompt, completion, self.generations[-self._choices].cached_tokens)

    async def news(self) -> None:
        """Wait until something can be read."""
        await self._news.wait()
        self._news.clear()

    async def finished(self) -> None:
        """Wait until all have ended."""
        while not self.done:
            await self.news()


class Service:
    """One emulated server's state and rules."""

    def __init__(self, options: Options, tokenizer: Tokenizer, core: EngineCore) -> None:
        self.options = options
        self._fault: Fault | None = None
        self.tokenizer = tokenizer
        self.core = core
        self.adapters = AdapterRegistry(
            options.served_names,
            enabled=options.lora,
            max_rank=options.max_lora_rank,
            trust_paths=options.trust_adapter_paths,
        )
        self._base = Speaker(tokenizer, options.served_names[0])
        self._speakers: dict[str, Speaker] = {}
        self._numbers = itertools.count()
        self._loading: dict[str, asyncio.Lock] = {}
        self.fault = options.fault

    @property
    def fault(self) -> Fault | None:
        """What is done wrong now; it can be changed at any time."""
        return self._fault

    @fault.setter
    def fault(self, fault: Fault | None) -> None:
        self._fault = fault
        self.core.delay = fault.delay if fault else 0.0

    @property
    def max_model_len(self) -> int:
        """Longest prompt plus output, tokens."""
        return self.options.profile.max_model_len

    def resolve(self, model: str | None) -> ServedAdapter | None:
        """The adapter that `model` names, None for the base model.

        Raises:
            ApiError: 404 for a name that is not served.
        """
        if not model or model in self.options.served_names:
            return None
        adapter = self.adapters.served.get(model)
        if adapter is None:
            aliases = ", ".join(self.options.served_names)
            message = f"The model `{model}` does not exist. Valid aliases: {aliases}."
            raise ApiError(404, message, "NotFoundError", "model")
        return adapter

    def name_of(self, adapter: ServedAdapter | None) -> str:
        """The name that answers carry."""
        return self.options.served_names[0] if adapter is None else adapter.name

    def chat_prompt(self, messages: Sequence[Message], *, opening: bool, continuing: bool) -> list[int]:
        """The token ids of a conversation.

        Raises:
            ApiError: 400 for one that no template takes.
        """
        if not messages:
            raise ApiError(400, "Cannot apply chat template to an empty conversation. Provide at least one message.")
        turns = [(message.role, message.text()) for message in messages]
        if not continuing:
            return self.tokenizer.chat(turns, "assistant" if opening else None)
        if opening:
            raise ApiError(400, "continue_final_message and add_generation_prompt are not compatible.")
        role, content = turns[-1]
        return self.tokenizer.chat(turns[:-1], role) + self.tokenizer.encode(content)

    def text_prompts(self, prompt: object) -> list[list[int]]:
        """The token ids of each prompt of a completion or an embedding.

        Raises:
            ApiError: 400 where there is none.
        """
        if isinstance(prompt, str):
            return [self.tokenizer.encode(prompt)]
        if not isinstance(prompt, list) or not prompt:
            raise ApiError(400, "You must pass at least one prompt")
        if isinstance(prompt[0], int):
            return [prompt]
        return [self.tokenizer.encode(each) if isinstance(each, str) else each for each in prompt]

    def check_prompt(self, tokens: Sequence[int], limit: int | None) -> int:
        """How many tokens may follow a prompt.

        Raises:
            ApiError: 400 for a prompt that is empty, too long or not of this vocabulary.
        """
        if not tokens:
            raise ApiError(400, "The prompt is empty; pass at least one token")
        if max(tokens) >= self.tokenizer.size:
            raise ApiError(400, f"Token id {max(tokens)} is out of vocabulary")
        if len(tokens) > self.max_model_len:
            raise self._too_long(len(tokens))
        room = self.max_model_len - len(tokens)
        if room < 1:
            raise bad_parameter("max_tokens", "max_tokens must be at least 1, got 0.", 0)
        return room if limit is None else min(limit, room)

    def answer(self, body: Sampling, prompts: Sequence[Sequence[int]]) -> Answer:
        """Start what `body` asks for on each of `prompts`.

        Raises:
            ApiError: 400 or 404 where it cannot be.
        """
        adapter = self.resolve(body.model)
        body.check(self.max_model_len)
        choices = body.n or 1
        answer = Answer(self.core, choices)
        for tokens in prompts:
            limit = self.check_prompt(tokens, body.output_limit)
            for choice in range(choices):
                prompt = self._prompt(tokens, adapter, body.cache_salt, _seed(body, choice))
                prompt.forced = body.forced
                generation = self._generation(answer, prompt, _ending(body, limit))
                generation.text = decode(self.tokenizer, tokens) if body.echoes else ""
                answer.generations.append(generation)
        answer.start()
        return answer

    async def embed(
        self, prompts: Sequence[Sequence[int]], adapter: ServedAdapter | None, size: int
    ) -> list[list[float]]:
        """One unit vector for each prompt: texts with common tokens are near each other.

        Raises:
            ApiError: 400 where it cannot be.
        """
        name = self.name_of(adapter)
        answer = Answer(self.core)
        for tokens in prompts:
            self.check_prompt(tokens, 1)
            prompt = self._prompt(tokens, adapter, None, 0)
            answer.generations.append(self._generation(answer, prompt, Ending(1, ignore_eos=True)))
        answer.start()
        try:
            await answer.finished()
        finally:
            answer.abort()
        return [_embedding(tokens, name, size) for tokens in prompts]

    async def load(self, name: str, path: str, *, in_place: bool) -> str:
        """Load an adapter; one at a time for each name.

        Raises:
            ApiError: as vLLM answers.
        """
        lock = self._loading.setdefault(name, asyncio.Lock())
        try:
            async with lock:
                adapter = self.adapters.prepare(name, path, in_place=in_place)
                await self.core.load_adapter(adapter.timing)
                self.adapters.served[name] = adapter
                self.core.numbers[name] = adapter.number
                self._speakers[name] = Speaker(self.tokenizer, name)
        finally:
            if not lock.locked():
                self._loading.pop(name, None)
        return f"Success: LoRA adapter '{name}' added successfully."

    def unload(self, name: str) -> str:
        """Stop serving an adapter; requests that run with it go on.

        Raises:
            ApiError: as vLLM answers.
        """
        self.adapters.remove(name)
        del self._speakers[name]
        return f"Success: LoRA adapter '{name}' removed successfully."

    def _speaker(self, adapter: ServedAdapter | None) -> Speaker:
        return self._base if adapter is None else self._speakers[adapter.name]

    def _prompt(self, tokens: Sequence[int], adapter: ServedAdapter | None, salt: str | None, seed: int) -> Prompt:
        return Prompt(tokens, self._speaker(adapter), adapter.timing if adapter else None, salt, seed)

    def _generation(self, answer: Answer, prompt: Prompt, ending: Ending) -> Generation:
        adapter = prompt.adapter.name if prompt.adapter else None
        hashes = BlockHashes(prompt.tokens, self.options.profile.block_size, adapter=adapter, salt=prompt.salt)
        times = Times(time.monotonic())
        name = f"g{next(self._numbers)}"
        return Generation(name, prompt, ending, self.tokenizer, hashes, times, answer.wake)

    def _too_long(self, count: int) -> ApiError:
        message = (
            f"This model's maximum context length is {self.max_model_len} tokens. However, your prompt contains "
            f"{count} input tokens, which exceeds this limit even without any output tokens. Please reduce the length "
            "of the input prompt."
        )
        return bad_parameter("input_tokens", message, count)


def chat_role(body: ChatBody) -> str:
    """The role of the answer to a conversation."""
    return "assistant" if body.add_generation_prompt or not body.messages else body.messages[-1].role


def _ending(body: Sampling, limit: int) -> Ending:
    return Ending(
        limit,
        body.min_tokens,
        body.ignore_eos,
        tuple(body.stops()),
        frozenset(body.stop_token_ids or ()),
        body.include_stop_str_in_output,
    )


def _seed(body: Sampling, choice: int) -> int:
    if body.temperature == 0:
        return 0
    return (body.seed or 0) * 1000 + choice


def _embedding(tokens: Sequence[int], name: str, size: int) -> list[float]:
    key = blake2b(name.encode(), digest_size=8).digest()
    sums = [0] * size
    for token in set(tokens):
        bits = int.from_bytes(shake_128(key + token.to_bytes(8, "little")).digest(size // 8 + 1), "little")
        for index in range(size):
            sums[index] += 1 if bits >> index & 1 else -1
    length = sum(value * value for value in sums) ** 0.5 or 1.0
    return [value / length for value in sums]
