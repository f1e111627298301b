"""Who may read figures: a caller with the scope admin, or the operator, which shows the agents' token.

The token is a Secret that operator, gateways and agents hold anyway; here it opens the demand and the SLO windows and
nothing else.
"""

import hmac
from pathlib import Path

_BEARER = "Bearer "
LEAST = 16


class SharedToken:
    """The agents' token, read from its file at each question, so that it can be rotated; None: there is none."""

    def __init__(self, path: Path | None) -> None:
        self._path = path

    def shown(self, authorization: str | None) -> bool:
        """Whether the header shows the token; one that is too short to be a secret opens nothing."""
        if self._path is None or authorization is None or not authorization.startswith(_BEARER):
            return False
        try:
            token = self._path.read_text("ascii").strip()
        except (OSError, UnicodeDecodeError):
            return False
        given = authorization.removeprefix(_BEARER).strip()
        return len(token) >= LEAST and hmac.compare_digest(given.encode(), token.encode())
