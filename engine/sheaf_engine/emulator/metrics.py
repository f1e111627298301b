"""``/metrics`` with vLLM's names, labels and buckets (``vllm/v1/metrics/loggers.py``)."""

from __future__ import annotations

from collections import deque

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from sheaf_engine.emulator.generation import Generation
from sheaf_engine.timing import Engine, TimingProfile

_LATENCY = (0.3, 0.5, 0.8, 1, 1.5, 2, 2.5, 5, 10, 15, 20, 30, 40, 50, 60, 120, 240, 480, 960, 1920, 7680)
_TTFT = (
    0.001,
    0.005,
    0.01,
    0.02,
    0.04,
    0.06,
    0.08,
    0.1,
    0.25,
    0.5,
    0.75,
    1,
    2.5,
    5,
    7.5,
    10,
    20,
    40,
    80,
    160,
    640,
    2560,
)
_ITL = (0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1, 2.5, 5, 7.5, 10, 20, 40, 80)
_STEP_TOKENS = (1, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384)
_LABELS = ("model_name", "engine")
_REASONS = ("stop", "length", "abort", "error", "repetition")
_REMEMBERED_LORA_STATES = 64
_COUNTERS = {
    "prefix_cache_queries": "Prefix cache queries, in terms of number of queried tokens.",
    "prefix_cache_hits": "Prefix cache hits, in terms of number of cached tokens.",
    "num_preemptions": "Cumulative number of preemption from the engine.",
    "prompt_tokens": "Number of prefill tokens processed.",
    "prompt_tokens_cached": "Number of cached prompt tokens (local + external).",
    "generation_tokens": "Number of generation tokens processed.",
}
_GAUGES = {
    "num_requests_running": "Number of requests in model execution batches.",
    "num_requests_waiting": "Number of requests waiting to be processed.",
    "kv_cache_usage_perc": "KV-cache usage. 1 means 100 percent usage.",
}
_HISTOGRAMS = {
    "time_to_first_token_seconds": ("Histogram of time to first token in seconds.", _TTFT),
    "inter_token_latency_seconds": ("Histogram of inter-token latency in seconds.", _ITL),
    "request_time_per_output_token_seconds": ("Histogram of time_per_output_token_seconds per request.", _ITL),
    "e2e_request_latency_seconds": ("Histogram of e2e request latency in seconds.", _LATENCY),
    "request_queue_time_seconds": ("Histogram of time spent in WAITING phase for request.", _LATENCY),
    "request_inference_time_seconds": ("Histogram of time spent in RUNNING phase for request.", _LATENCY),
    "request_prefill_time_seconds": ("Histogram of time spent in PREFILL phase for request.", _LATENCY),
    "request_decode_time_seconds": ("Histogram of time spent in DECODE phase for request.", _LATENCY),
    "iteration_tokens_total": ("Histogram of number of tokens per engine_step.", _STEP_TOKENS),
    "request_num_preemptions": ("Histogram of the number of times a request was preempted.", (1, 2, 3, 4, 5, 10, 20)),
}


class Metrics:
    """One registry, so that several emulators fit into one process."""

    def __init__(self, model_name: str, profile: TimingProfile, *, lora: bool) -> None:
        self.registry = CollectorRegistry()
        self._labels = {"model_name": model_name, "engine": "0"}
        self._max_loras = str(profile.max_loras)
        self._counters = {name: self._counter(name, text) for name, text in _COUNTERS.items()}
        self._gauges = {name: self._gauge(name, text) for name, text in _GAUGES.items()}
        self._histograms = {name: self._histogram(name, *spec) for name, spec in _HISTOGRAMS.items()}
        sizes = _one_two_five(profile.max_model_len)
        for name in ("request_prompt_tokens", "request_generation_tokens", "request_params_max_tokens"):
            self._histograms[name] = self._histogram(name, f"Histogram of {name}.", sizes)
        self._success = self._family(Counter, "request_success", "Count of successfully processed requests.")
        self._outcomes = {reason: self._success.labels(**self._labels, finished_reason=reason) for reason in _REASONS}
        self._lora = self._lora_family() if lora else None
        self._lora_states: deque[tuple[str, str]] = deque()
        self._describe_cache(profile)
        started = Gauge("process_start_time_seconds", "Start of the engine, Unix seconds.", registry=self.registry)
        started.set_to_current_time()
        text = "Whether continued streams go on as if they had not been interrupted."
        Gauge("sheaf:continuation_info", text, registry=self.registry).set(1)

    def admitted(self, queried: int, cached: int) -> None:
        """A request's prompt was looked up in the prefix cache: its tokens, and those found."""
        self._counters["prefix_cache_queries"].inc(queried)
        self._counters["prefix_cache_hits"].inc(cached)
        self._counters["prompt_tokens_cached"].inc(cached)

    def preempted(self) -> None:
        """A request lost its blocks."""
        self._counters["num_preemptions"].inc()

    def stepped(self, tokens: int) -> None:
        """A step that emitted `tokens` ended."""
        self._counters["generation_tokens"].inc(tokens)
        self._histograms["iteration_tokens_total"].observe(tokens)

    def emitted(self, generation: Generation, now: float) -> None:
        """A token of `generation` came out."""
        times = generation.times
        if times.last_token is None:
            times.first_token = now
            self._counters["prompt_tokens"].inc(len(generation.prompt.tokens))
            self._histograms["time_to_first_token_seconds"].observe(now - times.arrived)
        else:
            self._histograms["inter_token_latency_seconds"].observe(now - times.last_token)
        times.last_token = now

    def finished(self, generation: Generation, now: float) -> None:
        """`generation` ended."""
        self._outcomes[generation.finish_reason or "abort"].inc()
        times = generation.times
        observe = {
            "request_prompt_tokens": len(generation.prompt.tokens),
            "request_generation_tokens": generation.generated,
            "request_params_max_tokens": generation.ending.max_tokens,
            "request_num_preemptions": generation.preemptions,
            "e2e_request_latency_seconds": now - times.arrived,
        }
        for name, value in observe.items():
            self._histograms[name].observe(value)
        if times.scheduled is not None and times.first_token is not None:
            self._observe_phases(generation, times.scheduled, times.first_token, now)

    def render(self, engine: Engine, now: float) -> bytes:
        """The page, with the engine's state as it is."""
        self._gauges["num_requests_running"].set(engine.running)
        self._gauges["num_requests_waiting"].set(engine.waiting)
        self._gauges["kv_cache_usage_perc"].set(engine.cache_usage)
        if self._lora is not None:
            self._set_lora(",".join(engine.adapters.running), ",".join(engine.waiting_adapters), now)
        return generate_latest(self.registry)

    def _observe_phases(self, generation: Generation, scheduled: float, first: float, now: float) -> None:
        arrived = generation.times.arrived
        self._histograms["request_queue_time_seconds"].observe(scheduled - arrived)
        self._histograms["request_inference_time_seconds"].observe(now - scheduled)
        self._histograms["request_prefill_time_seconds"].observe(first - scheduled)
        self._histograms["request_decode_time_seconds"].observe(now - first)
        if generation.generated > 1:
            each = (now - first) / (generation.generated - 1)
            self._histograms["request_time_per_output_token_seconds"].observe(each)

    def _set_lora(self, running: str, waiting: str, now: float) -> None:
        assert self._lora is not None  # noqa: S101 - the only caller looked
        state = (running, waiting)
        if state not in self._lora_states:
            self._lora_states.append(state)
        if len(self._lora_states) > _REMEMBERED_LORA_STATES:
            self._lora.remove(self._max_loras, *reversed(self._lora_states.popleft()))
        self._lora.labels(self._max_loras, waiting, running).set(now)

    def _lora_family(self) -> Gauge:
        labels = ("max_lora", "waiting_lora_adapters", "running_lora_adapters")
        return Gauge("vllm:lora_requests_info", "Running stats on lora requests.", labels, registry=self.registry)

    def _describe_cache(self, profile: TimingProfile) -> None:
        facts = {
            "engine": "0",
            "block_size": str(profile.block_size),
            "num_gpu_blocks": str(profile.num_blocks),
            "enable_prefix_caching": str(profile.prefix_caching),
            "cache_dtype": "auto",
        }
        text = "Information of the LLMEngine CacheConfig"
        Gauge("vllm:cache_config_info", text, tuple(facts), registry=self.registry).labels(**facts).set(1)

    def _family(self, kind: type[Counter], name: str, text: str) -> Counter:
        return kind(f"vllm:{name}", text, (*_LABELS, "finished_reason"), registry=self.registry)

    def _counter(self, name: str, text: str) -> Counter:
        return Counter(f"vllm:{name}", text, _LABELS, registry=self.registry).labels(**self._labels)

    def _gauge(self, name: str, text: str) -> Gauge:
        return Gauge(f"vllm:{name}", text, _LABELS, registry=self.registry).labels(**self._labels)

    def _histogram(self, name: str, text: str, buckets: tuple[float, ...]) -> Histogram:
        family = Histogram(f"vllm:{name}", text, _LABELS, buckets=buckets, registry=self.registry)
        return family.labels(**self._labels)


def _one_two_five(limit: int) -> tuple[float, ...]:
    series = (mantissa * 10.0**power for power in range(7) for mantissa in (1, 2, 5))
    return tuple(value for value in series if value <= limit)
