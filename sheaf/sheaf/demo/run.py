"""`make demo`: make the assets, serve them, ask, judge, show. Ends with status 0 only if every answer was right."""

import shutil
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, SpinnerColumn, TaskID, TextColumn, TimeElapsedColumn

from sheaf.demo.ask import Asker
from sheaf.demo.assets import DemoAssets, prepare
from sheaf.demo.judge import Answer, Vectors, judge
from sheaf.demo.recipe import DemoError
from sheaf.demo.report import answer_table, console, next_commands, verdict_lines
from sheaf.demo.serving import Serving, serve
from sheaf.demo.store import cache_dir

POLL = 0.5


class Stages:
    """The bars of what is being made, one for each stage; where nobody watches, one line when a stage is done."""

    def __init__(self, out: Console, progress: Progress) -> None:
        self.out, self.progress = out, progress
        self.tasks: dict[str, TaskID] = {}
        self.began: dict[str, float] = {}

    def __call__(self, stage: str, fraction: float, /) -> None:
        """Take note of how far a stage is."""
        if stage not in self.tasks:
            self.tasks[stage] = self.progress.add_task(stage, total=1.0)
            self.began[stage] = time.monotonic()
        self.progress.update(self.tasks[stage], completed=fraction)
        if fraction >= 1.0 and not self.out.is_terminal:
            self.out.print(f"{stage}: done in {time.monotonic() - self.began[stage]:.0f} s")


def make_assets(out: Console, cache: Path) -> DemoAssets:
    """Models and adapters, with bars while they are made."""
    bars = (SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
    with Progress(*bars, console=out, disable=not out.is_terminal) as progress:
        return prepare(cache, Stages(out, progress))


def start(out: Console, serving: Serving) -> None:
    """Wait until everything serves, with the last thing that happened beside the spinner."""
    out.print(f"starting engines: three vLLM processes, one to two minutes on two cores (log: {serving.log})")
    with out.status("starting engines") as status:
        serving.await_ready(lambda line: status.update(escape(line)))
        serving.await_settled(lambda line: status.update(escape(line)))
    out.print(f"[green]ready[/] {serving.url}")


def question_and_judge(out: Console, serving: Serving) -> tuple[bool, str]:
    """Ask everything and show it; whether all was right, and the id of a request that can be explained."""
    heard: list[Answer | Vectors] = []
    with out.status("asking"):
        answers = Asker(serving.url, heard.append).ask()
    out.print(answer_table(heard))
    verdicts = judge(answers)
    for line in verdict_lines(verdicts):
        out.print(line, soft_wrap=True)
    return all(verdict.holds for verdict in verdicts), answers.prefix[1].request_id


def show_next(out: Console, serving: Serving, request_id: str, *, keep: bool) -> None:
    """The commands to try next."""
    out.print("\nTry next:" if keep else "\n`make demo KEEP=1` stays up; then try:")
    found = Path(sys.executable).with_name("sheaf")
    sheaf = ".venv/bin/sheaf" if found == Path.cwd() / ".venv/bin/sheaf" else shutil.which(str(found)) or "sheaf"
    for command in next_commands(serving.url, sheaf, request_id):
        out.print(f"  {command}", soft_wrap=True, markup=False)


def stay(out: Console, serving: Serving) -> None:
    """Serve until Ctrl-C."""
    out.print(f"\nserving {serving.url} until Ctrl-C")
    while True:
        serving.check_alive()
        time.sleep(POLL)


def demo(out: Console, listen: str, cache: Path, *, keep: bool) -> int:
    """The whole demo; its exit status."""
    assets = make_assets(out, cache)
    with serve(assets.manifests, listen, cache / "sheaf-up.log") as serving:
        start(out, serving)
        right, request_id = question_and_judge(out, serving)
        show_next(out, serving, request_id, keep=keep)
        if keep:
            with stopped_quietly(out):
                stay(out, serving)
    return 0 if right else 1


@contextmanager
def stopped_quietly(out: Console) -> Iterator[None]:
    """Ctrl-C is how a demo that stays up ends."""
    try:
        yield
    except KeyboardInterrupt:
        out.print("stopping")


def interrupt(_number: int, _frame: FrameType | None) -> None:
    """SIGTERM and SIGHUP end the demo as Ctrl-C does, unless whoever started it (`nohup`) ignores them."""
    raise KeyboardInterrupt


def run(listen: str = "127.0.0.1:8000", cache: Path | None = None, *, keep: bool = False) -> int:
    """Run the demo. What goes wrong ends in one line and status 1, Ctrl-C in status 130."""
    out = console()
    for number in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, interrupt)
    try:
        return demo(out, listen, cache or cache_dir(), keep=keep)
    except DemoError as error:
        out.print(f"[bold red]error:[/] {escape(str(error))}", soft_wrap=True)
        return 1
    except KeyboardInterrupt:
        out.print("interrupted; what was made so far is kept")
        return 130
