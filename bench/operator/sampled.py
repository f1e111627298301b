"""The operator with a sampling profiler: `python sampled.py FILE ARGUMENTS...` writes at its end where threads were.

Every line of the file is a share of the samples in which a thread was not waiting: first by the function that was on
top, then by functions anywhere in the stack.
"""

import sys
import threading
import time
from collections import Counter
from pathlib import Path
from types import FrameType

from sheaf_operator.__main__ import main

EVERY = 0.01
SHOWN = 45
WAITING = ("selectors.py", "threading.py", "runners.py", "sampled.py", "thread.py")


def _names(frame: FrameType | None) -> list[str]:
    found = []
    while frame is not None:
        code = frame.f_code
        found.append(f"{'/'.join(Path(code.co_filename).parts[-2:])}:{code.co_name}")
        frame = frame.f_back
    return found


def _sample(top: Counter[str], anywhere: Counter[str], stop: threading.Event) -> None:
    while not stop.wait(EVERY):
        for ident, frame in sys._current_frames().items():  # noqa: SLF001 - the one way to see other threads
            names = _names(frame) if ident != threading.get_ident() else []
            if names and not any(word in names[0] for word in WAITING):
                top[names[0]] += 1
                anywhere.update(set(names))


def _lines(title: str, counts: Counter[str], total: int) -> list[str]:
    return [title, *(f"{100 * number / total:6.1f} %  {name}" for name, number in counts.most_common(SHOWN)), ""]


def run(path: Path, arguments: list[str]) -> int:
    """Run the operator and write its profile."""
    top: Counter[str] = Counter()
    anywhere: Counter[str] = Counter()
    stop = threading.Event()
    sampler = threading.Thread(target=_sample, args=(top, anywhere, stop), daemon=True)
    sampler.start()
    began = time.monotonic()
    result = main(arguments)
    stop.set()
    sampler.join()
    total = max(1, top.total())
    head = f"{total} samples in {time.monotonic() - began:.0f} s\n"
    path.write_text("\n".join([head, *_lines("on top", top, total), *_lines("anywhere", anywhere, total)]))
    return result


if __name__ == "__main__":
    sys.exit(run(Path(sys.argv[1]), sys.argv[2:]))
