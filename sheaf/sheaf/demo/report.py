"""What the demo found, for people: a table of answers, the verdicts, and what to try next."""

import io
import sys
from collections.abc import Iterable, Sequence

from rich.console import Console
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from sheaf.demo.judge import Answer, Vectors, Verdict, cosine, shown

WIDTH_OF_A_FILE = 160
COLUMNS = (("asked", "bold"), ("answer", ""), ("pod", "cyan"), ("why", "dim"), ("cached", ""), ("TTFT", ""))


def console() -> Console:
    """A console that can say every answer: what the terminal's encoding lacks is replaced, and a log file is wide."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace", line_buffering=True)
    return Console(highlight=False) if sys.stdout.isatty() else Console(width=WIDTH_OF_A_FILE, highlight=False)


def answer_table(answers: Iterable[Answer | Vectors]) -> Table:
    """One row for each request, in the order in which they were sent."""
    table = Table(title="What was asked, what came back, and why from there", title_justify="left")
    for name, style in COLUMNS:
        right = name in ("cached", "TTFT")
        table.add_column(name, style=style or None, justify="right" if right else "left", no_wrap=right)
    for answer in answers:
        table.add_row(*(Text(cell) for cell in cells(answer)))
    return table


def cells(answer: Answer | Vectors) -> tuple[str, ...]:
    """A row's texts."""
    if isinstance(answer, Vectors):
        near, far = cosine(answer.one, answer.like_one), cosine(answer.one, answer.unlike)
        return answer.model, f"similarity {near:.2f} for alike, {far:.2f} for unlike", answer.pod, answer.why, "", ""
    cached = "-" if answer.cached_tokens is None else f"{answer.cached_tokens}/{answer.prompt_tokens}"
    ttft = "-" if answer.ttft_ms is None else f"{answer.ttft_ms:.0f} ms"
    return answer.model, shown(answer.text), answer.pod, answer.why, cached, ttft


def verdict_lines(verdicts: Sequence[Verdict]) -> list[str]:
    """One line of markup for each verdict."""
    marks = {True: "[green]right[/]", False: "[bold red]wrong[/]"}
    return [f"{marks[verdict.holds]}  {escape(verdict.promise)}: {escape(verdict.reason)}" for verdict in verdicts]


def next_commands(url: str, sheaf: str, request_id: str) -> tuple[str, ...]:
    """Commands to try against a Sheaf that is up: curl, the openai client, the command line."""
    body = '{"model": "pirate", "messages": [{"role": "user", "content": "Who are you?"}]}'
    python = (
        f"from openai import OpenAI; c = OpenAI(base_url='{url}/v1', api_key='none'); "
        "print(c.chat.completions.create(model='lawyer', messages=[{'role': 'user', 'content': 'Is tea healthy?'}])"
        ".choices[0].message.content)"
    )
    return (
        f"curl {url}/v1/chat/completions -H 'content-type: application/json' -d '{body}'",
        f'{sheaf.removesuffix("sheaf")}python -c "{python}"',
        f"{sheaf} get adapters --url {url}   # and: {sheaf} explain {request_id} --url {url}",
    )
