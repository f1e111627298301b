"""The bytes that an engine renders a request to, without its template engine: learned pieces, joined.

Whoever has the template (the agent in the pod) learned it once: what opens a conversation, what stands before and after
each role's content, what asks for the answer; and checked it against the template itself. What it does not cover
renders to None, and the request is known by its canonical bytes alone (see `prefix.render`). A form that is wrong can
only make a request slower: its bytes then match nothing that an engine holds.
"""

from collections.abc import Mapping, Sequence

import msgspec

Turn = tuple[str, str]


class Form(msgspec.Struct, frozen=True, kw_only=True):
    """How a Model renders.

    `text` stands before a plain prompt. `roles` has what stands before and after the content of each role; None where
    the chat template is not known. `opening` begins a conversation, `opening_system` one whose first message is of the
    role system; `answer` asks for the answer; `strip` says that white space around contents is taken away.
    """

    text: str = ""
    roles: Mapping[str, tuple[str, str]] | None = None
    opening: str = ""
    opening_system: str = ""
    answer: str = ""
    strip: bool = False

    def prompt(self, text: str) -> bytes:
        """The bytes of a plain prompt."""
        return (self.text + text).encode()

    def chat(self, turns: Sequence[Turn]) -> bytes | None:
        """The bytes of a conversation of (role, content) that is to be answered; None where it is not covered."""
        roles = self.roles
        if roles is None or not turns:
            return None
        parts = [self.opening_system if turns[0][0] == "system" else self.opening]
        for place, (role, content) in enumerate(turns):
            around = roles.get(role)
            if around is None or (role == "system" and place):
                return None
            parts += (around[0], content.strip() if self.strip else content, around[1])
        parts.append(self.answer)
        return "".join(parts).encode()
