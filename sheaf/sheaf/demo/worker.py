"""`python -m sheaf.demo.worker CACHE`: convert the base model and train the adapters that the cache does not hold.

Prints one JSON object a line: `{"stage": ..., "fraction": 0..1}`, and `{"error": ...}` before it ends with status 1.
"""

import json
import sys
from functools import partial
from pathlib import Path

from sheaf.demo.assets import Places, places
from sheaf.demo.recipe import GGUF_FILE, SMOLLM2, TRAINING, DemoError, Style, disk_error, load_styles
from sheaf.demo.store import is_whole, provide


def say(event: dict[str, object]) -> None:
    """One event for the process that started us."""
    print(json.dumps(event), flush=True)


def report(stage: str, fraction: float) -> None:
    """Progress of a stage."""
    say({"stage": stage, "fraction": round(fraction, 3)})


def convert_base(where: Places) -> None:
    """The base model in the form that vLLM serves."""
    report("convert smollm2", 0.0)
    from sheaf.demo.conversion import convert  # noqa: PLC0415 - torch takes ten seconds to import

    source = where.packages[SMOLLM2.name] / SMOLLM2.folder
    provide(where.smollm2, lambda folder: convert(source, GGUF_FILE, folder))
    report("convert smollm2", 1.0)


def train_adapters(where: Places, styles: dict[str, Style]) -> None:
    """One adapter for each style."""
    report("load smollm2", 0.0)
    from sheaf.demo.training import Trainer  # noqa: PLC0415 - torch takes ten seconds to import

    trainer = Trainer(where.smollm2, TRAINING)
    report("load smollm2", 1.0)
    for name, style in styles.items():
        stage = f"train {name}"
        report(stage, 0.0)
        provide(where.adapters[name], partial(trainer.teach, style, advance=partial(report, stage)))
        report(stage, 1.0)


def make(cache: Path) -> None:
    """Everything that is missing."""
    where = places(cache)
    if not is_whole(where.smollm2):
        convert_base(where)
    missing = {name: style for name, style in load_styles().items() if not is_whole(where.adapters[name])}
    if missing:
        train_adapters(where, missing)


def main() -> int:
    """The worker's exit status."""
    try:
        make(Path(sys.argv[1]))
    except DemoError as error:
        say({"error": str(error)})
        return 1
    except OSError as error:
        say({"error": str(disk_error(error, Path(sys.argv[1])))})
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
