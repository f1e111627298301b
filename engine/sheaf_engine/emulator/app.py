"""The ASGI application: vLLM's routes over the emulated service."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

import orjson
import structlog

from sheaf_engine.emulator import wire
from sheaf_engine.emulator.errors import SERVER_ERROR, ApiError, PlainError
from sheaf_engine.emulator.exchange import ClientGoneError, Exchange, Receive, Reply, Send
from sheaf_engine.emulator.faults import Fault, StreamResetError
from sheaf_engine.emulator.protocol import (
    ChatBody,
    CompletionBody,
    DetokenizeBody,
    EmbeddingBody,
    FaultBody,
    LoadAdapterBody,
    Sampling,
    TokenizeBody,
    UnloadAdapterBody,
)
from sheaf_engine.emulator.service import EMBEDDING_SIZE, Answer, Service, chat_role
from sheaf_engine.emulator.tokenizer import decode

Handler = Callable[[Exchange], Awaitable[None]]
_log = structlog.get_logger(__name__)
_METRICS_TYPE = b"text/plain; version=1.0.0; charset=utf-8"


class App:
    """One emulated server."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self._routes = self._table()

    async def __call__(self, scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            return
        exchange = Exchange(scope, receive, send)
        try:
            await self._handler(exchange)(exchange)
        except ApiError as error:
            await exchange.reply(Reply(error.body, error.status, headers=_allow(error, self._methods(exchange.path))))
        except ClientGoneError:
            pass
        except Exception:  # noqa: BLE001 - whatever failed, the client is owed an answer
            _log.exception("request failed", path=exchange.path)
            if not exchange.started:
                await exchange.reply(Reply(SERVER_ERROR.body, 500))

    def _table(self) -> dict[str, dict[str, Handler]]:
        options = self._service.options
        routes: dict[str, dict[str, Handler]] = {
            "/health": {"GET": self._empty},
            "/ping": {"GET": self._empty, "POST": self._empty},
            "/version": {"GET": self._version},
            "/load": {"GET": self._load},
            "/metrics": {"GET": self._metrics},
            "/kv_event_sources": {"GET": self._event_sources},
            "/v1/models": {"GET": self._models},
            "/tokenize": {"POST": self._tokenize},
            "/detokenize": {"POST": self._detokenize},
        }
        if options.embeds:
            routes["/v1/embeddings"] = {"POST": self._embeddings}
        else:
            routes["/v1/chat/completions"] = {"POST": self._chat}
            routes["/v1/completions"] = {"POST": self._complete}
        if options.runtime_lora:
            routes["/v1/load_lora_adapter"] = {"POST": self._load_adapter}
            routes["/v1/unload_lora_adapter"] = {"POST": self._unload_adapter}
        if options.faults:
            routes["/faults"] = {"POST": self._set_fault}
        if options.development:
            routes["/reset_prefix_cache"] = {"POST": self._reset_prefix_cache}
        return routes

    def _methods(self, path: str) -> dict[str, Handler]:
        return self._routes.get(path, {})

    def _handler(self, exchange: Exchange) -> Handler:
        methods = self._methods(exchange.path)
        handler = methods.get(exchange.method)
        if handler is None:
            raise PlainError(405 if methods else 404)
        return handler

    async def _empty(self, exchange: Exchange) -> None:
        await exchange.reply(Reply(media_type=None))

    async def _version(self, exchange: Exchange) -> None:
        await exchange.reply(Reply(orjson.dumps({"version": wire.VERSION})))

    async def _load(self, exchange: Exchange) -> None:
        await exchange.reply(Reply(orjson.dumps({"server_load": self._service.core.unfinished})))

    async def _metrics(self, exchange: Exchange) -> None:
        core = self._service.core
        page = core.metrics.render(core.engine, time.time())
        fault = self._service.fault
        await exchange.reply(Reply(fault.page(page) if fault else page, media_type=_METRICS_TYPE))

    async def _event_sources(self, exchange: Exchange) -> None:
        events = self._service.options.events
        await exchange.reply(Reply(orjson.dumps({"0": events.source()} if events.publishes else {})))

    async def _models(self, exchange: Exchange) -> None:
        options = self._service.options
        length = self._service.max_model_len
        cards = [wire.model_card(name, options.model, None, length) for name in options.served_names]
        parent = options.served_names[0]
        served = self._service.adapters.served.values()
        cards += [wire.model_card(adapter.name, adapter.path, parent, None) for adapter in served]
        await exchange.reply(Reply(orjson.dumps({"object": "list", "data": cards})))

    async def _tokenize(self, exchange: Exchange) -> None:
        body = await exchange.read(TokenizeBody)
        self._service.resolve(body.model)
        tokenizer = self._service.tokenizer
        if body.messages is None:
            tokens = tokenizer.encode(body.prompt or "")
        else:
            opening = body.add_generation_prompt and not body.continue_final_message
            tokens = self._service.chat_prompt(body.messages, opening=opening, continuing=body.continue_final_message)
        texts = [tokenizer.token_text(token) for token in tokens] if body.return_token_strs else None
        counts = {"count": len(tokens), "max_model_len": self._service.max_model_len}
        await exchange.reply(Reply(orjson.dumps(counts | {"tokens": tokens, "token_strs": texts})))

    async def _detokenize(self, exchange: Exchange) -> None:
        body = await exchange.read(DetokenizeBody)
        self._service.resolve(body.model)
        await exchange.reply(Reply(orjson.dumps({"prompt": decode(self._service.tokenizer, body.tokens)})))

    async def _load_adapter(self, exchange: Exchange) -> None:
        body = await exchange.read(LoadAdapterBody)
        said = await self._service.load(body.lora_name, body.lora_path, in_place=body.load_inplace)
        await exchange.reply(Reply(said.encode(), media_type=None))

    async def _unload_adapter(self, exchange: Exchange) -> None:
        body = await exchange.read(UnloadAdapterBody)
        await exchange.reply(Reply(self._service.unload(body.lora_name).encode(), media_type=None))

    async def _reset_prefix_cache(self, exchange: Exchange) -> None:
        await exchange.reply(Reply(media_type=None, status=200 if self._service.core.clear_prefix_cache() else 409))

    async def _set_fault(self, exchange: Exchange) -> None:
        body = await exchange.read(FaultBody)
        try:
            self._service.fault = None if body.fault is None else Fault.parse(body.fault)
        except ValueError as error:
            raise ApiError(400, str(error), param="fault") from error
        await exchange.reply(Reply(orjson.dumps({"fault": body.fault})))

    async def _embeddings(self, exchange: Exchange) -> None:
        body = await exchange.read(EmbeddingBody)
        adapter = self._service.resolve(body.model)
        prompts = self._service.text_prompts(body.input)
        size = body.dimensions or EMBEDDING_SIZE
        vectors = await exchange.while_connected(self._service.embed(prompts, adapter, size))
        name = self._service.name_of(adapter)
        tokens = sum(map(len, prompts))
        await exchange.reply(Reply(wire.embeddings(name, vectors, tokens, base64=body.encoding_format == "base64")))

    async def _chat(self, exchange: Exchange) -> None:
        body = await exchange.read(ChatBody)
        self._service.resolve(body.model)
        if body.tools and body.tool_choice not in (None, "none"):
            raise ApiError(
                400, '"auto" tool choice requires --enable-auto-tool-choice and --tool-call-parser to be set'
            )
        opening, continuing = body.add_generation_prompt, body.continue_final_message
        prompt = self._service.chat_prompt(body.messages, opening=opening, continuing=continuing)
        await self._answer(exchange, body, [prompt], role=chat_role(body))

    async def _complete(self, exchange: Exchange) -> None:
        body = await exchange.read(CompletionBody)
        self._service.resolve(body.model)
        await self._answer(exchange, body, self._service.text_prompts(body.prompt), role=None)

    async def _answer(self, exchange: Exchange, body: Sampling, prompts: list[list[int]], role: str | None) -> None:
        form = self._form(exchange, body, role)
        answer = self._service.answer(body, prompts)
        try:
            if body.stream:
                await exchange.while_connected(self._stream(exchange, answer, form))
            else:
                await exchange.while_connected(answer.finished())
                await exchange.reply(Reply(self._whole(answer, form)))
        finally:
            answer.abort()

    def _form(self, exchange: Exchange, body: Sampling, role: str | None) -> wire.Form:
        asked = body.stream_options
        usage = self._service.options.force_usage or bool(asked and asked.include_usage)
        continuous = self._service.options.force_usage or bool(asked and asked.continuous_usage_stats and usage)
        return wire.Form(
            chat=role is not None,
            id=wire.answer_id(role is not None, exchange.header(b"x-request-id") or body.request_id),
            created=wire.unix_now(),
            model=self._service.name_of(self._service.resolve(body.model)),
            role=role or "",
            token_ids=bool(body.return_token_ids),
            top_logprobs=body.top_logprobs_count,
            usage=usage,
            continuous_usage=continuous,
            cached_details=self._service.options.prompt_tokens_details,
        )

    def _whole(self, answer: Answer, form: wire.Form) -> bytes:
        read = ((generation.prompt.tokens, generation.read()) for generation in answer.generations)
        choices = [(prompt, delta) for prompt, delta in read if delta is not None]
        return wire.whole(form, self._service.tokenizer, choices, answer.usage())

    async def _stream(self, exchange: Exchange, answer: Answer, form: wire.Form) -> None:
        prompts = [generation.prompt.tokens for generation in answer.generations]
        chunks = wire.Chunks(form, self._service.tokenizer, prompts)
        sender = _Sender(exchange, self._service)
        await answer.news()
        await exchange.open_stream()
        try:
            if form.chat:
                for index in range(len(answer.generations)):
                    await sender.send(chunks.opening(index))
            await self._send_deltas(answer, chunks, sender)
            if form.usage:
                await sender.send(chunks.closing(answer.usage()))
            await exchange.write(wire.DONE)
            await exchange.write(b"", more=False)
        except StreamResetError:
            raise ClientGoneError from None

    async def _send_deltas(self, answer: Answer, chunks: wire.Chunks, sender: _Sender) -> None:
        told: set[int] = set()
        while len(told) < len(answer.generations):
            for index, generation in enumerate(answer.generations):
                delta = None if index in told else generation.read()
                if delta is None:
                    continue
                if delta.finish_reason:
                    told.add(index)
                await sender.send(chunks.delta(index, delta, generation.generated))
            if len(told) < len(answer.generations):
                await answer.news()


class _Sender:
    """Sends a stream's chunks, spoiled where a fault says so."""

    def __init__(self, exchange: Exchange, service: Service) -> None:
        self._exchange = exchange
        self._service = service
        self._number = 0

    async def send(self, chunk: bytes) -> None:
        self._number += 1
        if self._service.fault is None:
            await self._exchange.write(chunk)
        else:
            await self._service.fault.deliver(chunk, self._number, self._exchange.write)


def _allow(error: ApiError, methods: dict[str, Handler]) -> tuple[tuple[bytes, bytes], ...]:
    return ((b"allow", ", ".join(methods).encode()),) if error.status == 405 else ()
