"""Conversations are rendered as the engine's template would, or not at all."""

from sheaf_gateway.routing.form import Form

CHATML = Form(
    text="<s>",
    roles={role: (f"<{role}>", "</>\n") for role in ("system", "user", "assistant")},
    opening="<system>help</>\n",
    answer="<assistant>",
)


def test_a_conversation_is_joined_from_its_pieces():
    assert CHATML.chat([("user", " hi ")]) == b"<system>help</>\n<user> hi </>\n<assistant>"
    assert CHATML.chat([("system", "be"), ("user", "hi")]) == b"<system>be</>\n<user>hi</>\n<assistant>"


def test_contents_are_stripped_where_the_template_does_it():
    form = Form(roles={"user": ("[", "]")}, strip=True)
    assert form.chat([("user", " hi\n")]) == b"[hi]"


def test_a_plain_prompt_begins_as_the_tokenizer_begins_it():
    assert CHATML.prompt("Größe") == "<s>Größe".encode()


def test_what_is_not_covered_is_not_rendered():
    assert CHATML.chat([]) is None
    assert CHATML.chat([("tool", "x")]) is None
    assert CHATML.chat([("user", "x"), ("system", "late")]) is None
    assert Form().chat([("user", "x")]) is None
