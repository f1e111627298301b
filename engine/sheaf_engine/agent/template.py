"""Learning a chat template: what it puts around the contents of messages, so that others can render without it.

The template is asked with marked contents; what stands before, between and after the marks is learned by role. Then
samples with many orders of roles and awkward contents are rendered both ways. What differs, or depends on the day, is
not learned, and an order that the template refuses is left out: a conversation that is not covered costs prediction its
precision and nothing else. Templates come with models and are not trusted: they run in Jinja's immutable sandbox, as
engines run them.
"""

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import product
from typing import Any

from sheaf_crds.agent_api import Rendering

LARGEST_TEMPLATE = 256 * 2**10
Turns = Sequence[tuple[str, str]]
Render = Callable[[Turns], str]

_AWKWARD = ("Hi", " two\nlines ", "Größe 東京 🙂", "<b>&amp;{{ x }}{% if %}</b>", "a")
_DAY = ("strftime_now", "date_string")
_S, _U, _A = "system", "user", "assistant"
_PROBES = ((_U,), (_S, _U), (_U, _A, _U), (_S, _U, _A, _U), (_U, _U), (_S,), (_A, _U), (_U, _A), (_U, _A, _A, _U))
_SAMPLES = (*_PROBES, (_U, _A, _U, _A, _U), (_S, _U, _A, _U, _A, _U), (_U, _A, _U, _A, _U, _A), (_S, _U, _U, _A, _U))


class NotLearnedError(Exception):
    """The template does not fit the learned form; the message says why."""


def learn(template: str, special: Mapping[str, str]) -> Rendering:
    """The form of a chat template; `special` are the tokens that it may name, such as `bos_token`."""
    if not template:
        return Rendering(problem="the model has no chat template")
    try:
        render = _renderer(template, special)
        form = _formed(render)
        _check(form, render)
    except NotLearnedError as error:
        return Rendering(problem=str(error))
    except Exception as error:  # noqa: BLE001 - whatever a template of somebody else does
        return Rendering(problem=f"the chat template cannot be rendered: {type(error).__name__}: {error}"[:300])
    return form


def joined(form: Rendering, turns: Turns) -> str | None:
    """A conversation by the learned form; None where it is not covered."""
    try:
        parts = [form.begins[turns[0][0]]]
        for place, (role, content) in enumerate(turns):
            parts.append(content.strip() if form.strip else content)
            parts.append(form.gaps[role][turns[place + 1][0]] if place + 1 < len(turns) else form.ends[role])
    except KeyError:
        return None
    return "".join(parts)


def _renderer(template: str, special: Mapping[str, str]) -> Render:
    from jinja2.sandbox import ImmutableSandboxedEnvironment  # noqa: PLC0415 - only where there is a template

    if len(template) > LARGEST_TEMPLATE:
        raise NotLearnedError("the chat template is larger than 256 KiB")
    if any(word in template for word in _DAY):
        raise NotLearnedError("the chat template puts the date into prompts")
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
    )
    environment.filters["tojson"] = _to_json
    environment.globals["raise_exception"] = _refuse
    compiled = environment.from_string(template)

    def render(turns: Turns) -> str:
        messages = [{"role": role, "content": content} for role, content in turns]
        return str(
            compiled.render(messages=messages, tools=None, documents=None, add_generation_prompt=True, **special)
        )

    return render


def _to_json(value: Any, indent: int | None = None) -> str:
    return json.dumps(value, ensure_ascii=False, indent=indent)


def _refuse(message: str) -> None:
    raise NotLearnedError(f"the chat template refuses an ordinary conversation: {message}"[:300])


def _formed(render: Render) -> Rendering:
    """What stands around marks, in every order of roles that the template takes."""
    strip = " \x02x\x03 " not in render([(_U, " \x02x\x03 ")])
    form = Rendering(strip=strip)
    for roles, pieces in _probed(render):
        _agree(form.begins, roles[0], pieces[0])
        for one, other, piece in zip(roles, roles[1:], pieces[1:], strict=False):
            _agree(form.gaps.setdefault(one, {}), other, piece)
        _agree(form.ends, roles[-1], pieces[-1])
    return form


def _probed(render: Render) -> Iterable[tuple[tuple[str, ...], list[str]]]:
    for roles in _PROBES:
        marks = [f"\x02{place}\x03" for place in range(len(roles))]
        try:
            text = render(list(zip(roles, marks, strict=True)))
        except NotLearnedError:
            if roles == (_U,):
                raise
            continue
        yield roles, _around(text, marks)


def _around(text: str, marks: Iterable[str]) -> list[str]:
    """What stands before, between and after the marks."""
    pieces = []
    for mark in marks:
        piece, found, text = text.partition(mark)
        if not found or mark in text:
            raise NotLearnedError("the chat template leaves contents out, or repeats or moves them")
        pieces.append(piece)
    return [*pieces, text]


def _agree(known: dict[str, str], key: str, piece: str) -> None:
    if known.setdefault(key, piece) != piece:
        raise NotLearnedError("what the chat template puts between contents depends on more than their roles")


def _check(form: Rendering, render: Render) -> None:
    for order, shift in product(_SAMPLES, range(len(_AWKWARD))):
        turns = [(role, _AWKWARD[(place + shift) % len(_AWKWARD)]) for place, role in enumerate(order)]
        told = joined(form, turns)
        if told is not None and told != _rendered(render, turns, told):
            raise NotLearnedError("the chat template does more than to put fixed text around contents")


def _rendered(render: Render, turns: Turns, refused: str) -> str:
    try:
        return render(turns)
    except NotLearnedError:
        return refused
