"""The adapters that the emulator serves, with vLLM's answers for every way to load one wrongly."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from sheaf_engine.emulator.errors import ApiError
from sheaf_engine.timing import Adapter

_DEFAULT_RANK = 16


@dataclass(frozen=True, slots=True)
class ServedAdapter:
    """A loaded adapter.

    Attributes:
        name: what requests call it.
        path: where it was loaded from.
        number: vLLM's integer id.
        timing: the adapter as the timing model sees it.
    """

    name: str
    path: str
    number: int
    timing: Adapter


class AdapterRegistry:
    """Adapters by name."""

    def __init__(self, base_names: tuple[str, ...], *, enabled: bool, max_rank: int, trust_paths: bool) -> None:
        self.served: dict[str, ServedAdapter] = {}
        self._base_names = base_names
        self._enabled = enabled
        self._max_rank = max_rank
        self._trust_paths = trust_paths
        self._numbers = 0

    def prepare(self, name: str, path: str, *, in_place: bool) -> ServedAdapter:
        """Check a load and describe the adapter, which is not served yet.

        Raises:
            ApiError: as vLLM answers.
        """
        self._check_name(name, path, in_place=in_place)
        size, rank = self._inspect(name, path)
        if not self._enabled:
            raise _failed("LoRA is not enabled; start the engine with --enable-lora")
        if rank > self._max_rank:
            raise _failed(f"LoRA rank {rank} is greater than max_lora_rank {self._max_rank}.")
        number = self.served[name].number if name in self.served else self._next_number()
        return ServedAdapter(name, path, number, Adapter(name, rank, size))

    def remove(self, name: str) -> None:
        """Stop serving an adapter.

        Raises:
            ApiError: as vLLM answers.
        """
        if not name:
            message = "'lora_name' needs to be provided to unload a LoRA adapter."
            raise ApiError(400, message, "InvalidUserInput")
        if name not in self.served:
            raise ApiError(404, f"The lora adapter '{name}' cannot be found.", "NotFoundError")
        del self.served[name]

    def _next_number(self) -> int:
        self._numbers += 1
        return self._numbers

    def _check_name(self, name: str, path: str, *, in_place: bool) -> None:
        if not name or not path:
            raise ApiError(400, "Both 'lora_name' and 'lora_path' must be provided.", "InvalidUserInput")
        if name in self._base_names:
            raise ApiError(400, f"The lora adapter '{name}' conflicts with a served base model.", "InvalidUserInput")
        if name in self.served and not in_place:
            message = (
                f"The lora adapter '{name}' has already been loaded. If you want to load the adapter in place, "
                "set 'load_inplace' to True."
            )
            raise ApiError(400, message, "InvalidUserInput")

    def _inspect(self, name: str, path: str) -> tuple[int | None, int]:
        config = Path(path) / "adapter_config.json"
        try:
            rank = int(json.loads(config.read_bytes())["r"])
            return _weights_size(Path(path)), rank
        except FileNotFoundError:
            if self._trust_paths and not Path(path).exists():
                return None, min(_DEFAULT_RANK, self._max_rank)
            raise ApiError(404, f"Loading lora {name} failed: No adapter found for {path}", "NotFoundError") from None
        except (OSError, ValueError, TypeError, KeyError) as error:
            raise _failed(f"cannot read adapter_config.json: {error!r}") from error


def _weights_size(directory: Path) -> int | None:
    weights = directory / "adapter_model.safetensors"
    return weights.stat().st_size if weights.is_file() else None


def _failed(reason: str) -> ApiError:
    message = f"Call to add_lora method failed: Worker failed with error '{reason}', please check the stack trace above"
    return ApiError(500, f"{message} for the root cause", "InternalServerError")
