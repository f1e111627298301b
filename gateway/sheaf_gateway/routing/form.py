"""The bytes that an engine renders a request to, without its template engine: learned pieces, joined.

Whoever has the template (the agent in the pod) learned it once: what stands before, between and after the contents of
messages, by their roles; and checked it against the template itself. What it does not cover
renders to None, and the request is known by its canonical bytes alone (see `prefix.render`). A form that is wrong can
only make a request slower: its bytes then match nothing that an engine holds.
"""

from collections.abc import Mapping, Sequence

import msgspec

Turn = tuple[str, str]


class Form(msgspec.Struct, frozen=True, kw_only=True):
    """How a Model renders.

    `text` stands before a plain prompt. `begins` has what stands before the content of a first message, by its role;
    `gaps` what stands between two contents, by the roles of the first and the second; `ends` what follows the last one
    and asks for the answer; all empty where the chat template is not known. `strip` says that white space around
    contents is taken away.
    """

    text: str = ""
    begins: Mapping[str, str] = {}
    gaps: Mapping[str, Mapping[str, str]] = {}
    ends: Mapping[str, str] = {}
    strip: bool = False

    def prompt(self, text: str) -> bytes:
        """The bytes of a plain prompt."""
        return (self.text + text).encode()

    def chat(self, turns: Sequence[Turn]) -> bytes | None:
        """The bytes of a conversation of (role, content) that is to be answered; None where it is not covered."""
        try:
            parts = [self.begins[turns[0][0]]]
            for place, (role, content) in enumerate(turns):
                parts.append(content.strip() if self.strip else content)
                parts.append(self.gaps[role][turns[place + 1][0]] if place + 1 < len(turns) else self.ends[role])
        except (KeyError, IndexError):
            return None
        return "".join(parts).encode()
