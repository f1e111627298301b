"""What the demo shows: one row for each request, one line for each verdict, three commands that work as they are."""

import shlex
from io import StringIO

import pytest
from rich.console import Console
from sheaf.demo.judge import Answer, Vectors, Verdict
from sheaf.demo.report import answer_table, cells, console, next_commands, verdict_lines

ANSWER = Answer("pirate", "Who?", "Arr!\nmatey [bold]x[/bold]", "pod-1", "cheapest [red]", "r7", 440, 416, 211.6)
VECTORS = Vectors("minilm", (1.0, 0.0), (0.8, 0.6), (0.0, 1.0), "pod-2", "only one")
COMMANDS = next_commands("http://127.0.0.1:8000", ".venv/bin/sheaf", "r7")


def test_a_row_has_what_was_asked_answered_and_measured() -> None:
    assert cells(ANSWER) == ("pirate", "Arr! matey [bold]x[/bold]", "pod-1", "cheapest [red]", "416/440", "212 ms")
    assert cells(Answer("smollm2", "Who?", "I."))[4:] == ("-", "-")
    assert cells(VECTORS)[:3] == ("minilm", "similarity 0.80 for alike, 0.00 for unlike", "pod-2")


def test_answers_are_shown_as_they_are_and_not_as_markup() -> None:
    out = Console(file=StringIO(), width=160)
    out.print(answer_table([ANSWER, VECTORS]))
    shown = out.file.getvalue()  # type: ignore[attr-defined]
    assert "[bold]x[/bold]" in shown
    assert "cheapest [red]" in shown


def test_a_verdict_is_one_line_that_says_which_promise_and_why() -> None:
    lines = verdict_lines([Verdict("a is b", holds=True, reason="so [x]"), Verdict("c", holds=False, reason="no")])
    assert lines == ["[green]right[/]  a is b: so \\[x]", "[bold red]wrong[/]  c: no"]


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_can_be_pasted_into_a_shell(command: str) -> None:
    words = shlex.split(command, comments=True)
    assert words[0] in ("curl", ".venv/bin/python", ".venv/bin/sheaf")
    assert "http://127.0.0.1:8000" in command
    if words[1] == "-c":
        compile(words[2], "command", "exec")


def test_a_log_file_gets_wide_lines() -> None:
    assert console().width == 160
