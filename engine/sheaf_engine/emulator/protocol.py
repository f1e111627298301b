"""The bodies that the emulator understands: vLLM 0.32's fields, of which those that need a model are taken and ignored.

Checks are in vLLM's order: the shape of the body, then the model's name, then the sampling parameters.
"""

from __future__ import annotations

from typing import Annotated, Any, cast

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator
from pydantic_core import PydanticCustomError

from sheaf_engine.continued import FORCED
from sheaf_engine.continued import check as check_continued
from sheaf_engine.emulator.errors import ApiError, bad_parameter

_INT64 = 2**63 - 1
_MAX_LOGPROBS = 20
_MAX_STOPS = 4
_MAX_CHOICES = 16384
TokenId = Annotated[int, Field(ge=0, strict=True)]
Stops = Annotated[list[str], Field(max_length=_MAX_STOPS)]


class Body(BaseModel):
    """Any body: unknown fields are ignored, as OpenAI's clients send many."""

    model_config = ConfigDict(extra="ignore", protected_namespaces=())


class StreamOptions(Body):
    """What a stream tells about usage."""

    include_usage: bool | None = False
    continuous_usage_stats: bool | None = False


class Sampling(Body):
    """The fields that chat and completions share."""

    model: str | None = None
    n: int | None = 1
    seed: int | None = Field(None, ge=-_INT64 - 1, le=_INT64)
    stop: str | Stops | None = None
    stop_token_ids: list[int] | None = None
    include_stop_str_in_output: bool = False
    ignore_eos: bool = False
    min_tokens: int = 0
    max_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    stream: bool | None = False
    stream_options: StreamOptions | None = None
    return_token_ids: bool | None = None
    cache_salt: str | None = None
    request_id: str | None = None
    vllm_xargs: dict[str, str | int | float | list[str | int | float]] | None = None

    @model_validator(mode="before")
    @classmethod
    def _refuse_contradictions(cls, value: Any) -> Any:
        if not isinstance(value, dict):
            return value
        if value.get("stream_options") and not value.get("stream"):
            raise _refusal("stream_options", "Stream options can only be defined when `stream=True`.")
        if "cache_salt" in value and value["cache_salt"] == "":
            raise _refusal("cache_salt", "Parameter 'cache_salt' must be a non-empty string if provided.")
        return value

    @property
    def output_limit(self) -> int | None:
        """The most tokens to generate, as asked."""
        return self.max_tokens

    @property
    def top_logprobs_count(self) -> int | None:
        """Alternatives to report for each token; None when no logprobs were asked for."""
        return None

    @property
    def echoes(self) -> bool:
        """Whether the answer begins with the prompt."""
        return False

    def stops(self) -> list[str]:
        """The stop strings."""
        if self.stop is None:
            return []
        return [self.stop] if isinstance(self.stop, str) else self.stop

    def check(self, max_model_len: int) -> None:
        """Refuse sampling parameters out of range.

        Raises:
            ApiError: 400, worded as vLLM does.
        """
        limit = self.output_limit
        self._check_sampling()
        if limit is not None and limit < 1:
            raise bad_parameter("max_tokens", f"max_tokens must be at least 1, got {limit}.", limit)
        if limit is not None and limit > max_model_len:
            raise bad_parameter(
                "max_tokens",
                f"max_tokens={limit} cannot be greater than max_model_len={max_model_len}. "
                "Please request fewer output tokens.",
                limit,
            )
        if limit is not None and self.min_tokens > limit:
            raise ApiError(400, f"min_tokens must be less than or equal to max_tokens={limit}, got {self.min_tokens}.")

    @property
    def forced(self) -> list[int]:
        """The tokens that must come first, as Sheaf's plug-in for vLLM understands them."""
        return cast("list[int]", (self.vllm_xargs or {}).get(FORCED) or [])

    def _check_sampling(self) -> None:
        self._check_choices()
        try:
            check_continued(self.vllm_xargs or {})
        except ValueError as error:
            raise ApiError(400, str(error)) from error
        if self.temperature is not None and self.temperature < 0:
            message = f"temperature must be non-negative, got {self.temperature}."
            raise bad_parameter("temperature", message, self.temperature)
        if self.top_p is not None and not 0 < self.top_p <= 1:
            raise bad_parameter("top_p", f"top_p must be in (0, 1], got {self.top_p}.", self.top_p)
        if self.min_tokens < 0:
            raise ApiError(400, f"min_tokens must be greater than or equal to 0, got {self.min_tokens}.")
        if "" in self.stops():
            raise ApiError(400, "stop cannot contain an empty string.")
        if (self.top_logprobs_count or 0) > _MAX_LOGPROBS:
            message = f"Requested sample logprobs of {self.top_logprobs_count}, which is greater than max allowed: 20"
            raise bad_parameter("logprobs", message, self.top_logprobs_count)

    def _check_choices(self) -> None:
        choices = 1 if self.n is None else self.n
        if choices < 1:
            raise ApiError(400, f"n must be at least 1, got {choices}.")
        if choices > _MAX_CHOICES:
            raise ApiError(400, f"n must be at most {_MAX_CHOICES}, got {choices}.")
        if choices > 1 and self.temperature == 0:
            raise ApiError(400, f"n must be 1 when using greedy sampling, got {choices}.")


class Message(Body):
    """One turn of a conversation; parts other than text are refused when it is rendered."""

    role: str
    content: str | list[dict[str, Any]] | None = None

    def text(self) -> str:
        """The turn's text, parts on lines of their own.

        Raises:
            ApiError: 400 for a part that is not text.
        """
        if isinstance(self.content, list):
            return "\n".join(map(_part_text, self.content))
        return self.content or ""


class ChatBody(Sampling):
    """``POST /v1/chat/completions``."""

    messages: list[Message]
    max_completion_tokens: int | None = None
    logprobs: bool | None = False
    top_logprobs: int | None = 0
    add_generation_prompt: bool = True
    continue_final_message: bool = False
    tools: list[dict[str, Any]] | None = None
    tool_choice: str | dict[str, Any] | None = "none"

    @model_validator(mode="before")
    @classmethod
    def _refuse_logprobs_without_consent(cls, value: Any) -> Any:
        if isinstance(value, dict) and value.get("top_logprobs") and not value.get("logprobs"):
            raise _refusal("top_logprobs", "when using `top_logprobs`, `logprobs` must be set to true.")
        return value

    @property
    def output_limit(self) -> int | None:
        """``max_completion_tokens`` where given, else ``max_tokens``."""
        return self.max_tokens if self.max_completion_tokens is None else self.max_completion_tokens

    @property
    def top_logprobs_count(self) -> int | None:
        """As asked, when logprobs were."""
        return (self.top_logprobs or 0) if self.logprobs else None


class CompletionBody(Sampling):
    """``POST /v1/completions``."""

    prompt: list[TokenId] | list[list[TokenId]] | str | list[str] | None = None
    max_tokens: int | None = 16
    logprobs: int | None = None
    echo: bool | None = False
    suffix: str | None = None

    def check(self, max_model_len: int) -> None:
        """Refuse what no plain text model takes, then parameters out of range.

        Raises:
            ApiError: 400, worded as vLLM does.
        """
        if self.suffix:
            raise ApiError(400, "suffix is only supported for models with FIM completion rendering", param="suffix")
        super().check(max_model_len)

    @field_validator("max_tokens")
    @classmethod
    def _default_limit(cls, value: int | None) -> int:
        return 16 if value is None else value

    @model_validator(mode="before")
    @classmethod
    def _refuse_no_prompt(cls, value: Any) -> Any:
        if isinstance(value, dict) and value.get("prompt") in (None, ""):
            raise _refusal("prompt", "Either prompt or prompt_embeds must be provided and non-empty.")
        return value

    @property
    def top_logprobs_count(self) -> int | None:
        """As asked."""
        return self.logprobs

    @property
    def echoes(self) -> bool:
        """As asked."""
        return bool(self.echo)


class EmbeddingBody(Body):
    """``POST /v1/embeddings``."""

    model: str | None = None
    input: list[TokenId] | list[list[TokenId]] | str | list[str]
    encoding_format: str = "float"
    dimensions: int | None = Field(None, ge=1, le=8192)


class TokenizeBody(Body):
    """``POST /tokenize`` of a text or of a conversation."""

    model: str | None = None
    prompt: str | None = None
    messages: list[Message] | None = None
    add_generation_prompt: bool = True
    continue_final_message: bool = False
    return_token_strs: bool | None = False

    @model_validator(mode="after")
    def _need_either(self) -> TokenizeBody:
        if self.prompt is None and self.messages is None:
            raise PydanticCustomError("missing", "Field required")
        return self


class DetokenizeBody(Body):
    """``POST /detokenize``."""

    model: str | None = None
    tokens: list[Annotated[int, Field(ge=0, le=_INT64)]]


class LoadAdapterBody(Body):
    """``POST /v1/load_lora_adapter``."""

    lora_name: str
    lora_path: str
    load_inplace: bool = False


class UnloadAdapterBody(Body):
    """``POST /v1/unload_lora_adapter``."""

    lora_name: str


class FaultBody(Body):
    """``POST /faults``: KIND:NUMBER, or null for none."""

    fault: str | None = None


def _refusal(param: str, message: str) -> PydanticCustomError:
    return PydanticCustomError("refused", "{message}", {"message": message, "param": param})


def _part_text(part: dict[str, Any]) -> str:
    text = part.get("text")
    if part.get("type", "text") != "text" or not isinstance(text, str):
        raise ApiError(400, f"the emulator takes text parts only, not {part.get('type')!r}")
    return text
