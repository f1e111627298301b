"""Conversations are rendered as the engine's template would, or not at all."""

import pytest
from sheaf_gateway.routing.form import Form

ROLES = ("system", "user", "assistant")
CHATML = Form(
    text="<s>",
    begins={"system": "<system>", "user": "<system>help</>\n<user>", "assistant": "<assistant>"},
    gaps={one: {other: f"</>\n<{other}>" for other in ROLES if other != "system"} for one in ROLES},
    ends=dict.fromkeys(ROLES, "</>\n<assistant>"),
)


def test_a_conversation_is_joined_from_its_pieces():
    assert CHATML.chat([("user", " hi ")]) == b"<system>help</>\n<user> hi </>\n<assistant>"
    assert CHATML.chat([("system", "be"), ("user", "hi")]) == b"<system>be</>\n<user>hi</>\n<assistant>"


def test_contents_are_stripped_where_the_template_does_it():
    form = Form(begins={"user": "["}, ends={"user": "]"}, strip=True)
    assert form.chat([("user", " hi\n")]) == b"[hi]"


def test_a_plain_prompt_begins_as_the_tokenizer_begins_it():
    assert CHATML.prompt("Größe") == "<s>Größe".encode()


@pytest.mark.parametrize("turns", [[], [("tool", "x")], [("user", "x"), ("system", "late")]])
def test_what_is_not_covered_is_not_rendered(turns):
    assert CHATML.chat(turns) is None
    assert Form().chat([("user", "x")]) is None
