"""Who may tell us anything: each batch carries a truncated HMAC-SHA256 under a key derived from a shared secret.

The secret is the agents' token, which all gateways of an installation hold anyway, or a file that one supervisor made
for its workers. The key that was in force before is accepted for a while, so that the secret can be rotated.
"""

import asyncio
import hashlib
import hmac
from pathlib import Path

_PURPOSE = b"sheaf gateway gossip 1"
_TAG = 16
_READ_EVERY_S = 5.0
_MAX_SECRET = 65_536


def derived(secret: bytes) -> bytes:
    """The key for gossip from a secret that has other uses, too."""
    return hmac.digest(secret.strip(), _PURPOSE, hashlib.sha256)


def sealed(key: bytes, payload: bytes) -> bytes:
    """The payload with its tag before it."""
    return hmac.digest(key, payload, hashlib.sha256)[:_TAG] + payload


def opened(keys: tuple[bytes, ...], data: bytes) -> bytes | None:
    """The payload, where its tag is right under one of the keys."""
    tag, payload = data[:_TAG], data[_TAG:]
    for key in keys:
        if hmac.compare_digest(hmac.digest(key, payload, hashlib.sha256)[:_TAG], tag):
            return payload
    return None


class Keys:
    """The keys in force, the newest first; read again from the secret's file every few seconds."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.keys: tuple[bytes, ...] = ()

    async def follow(self) -> None:
        """Look for a new secret until cancelled."""
        while True:
            await asyncio.sleep(_READ_EVERY_S)
            await self.read()

    async def read(self) -> bool:
        """Read the secret; whether there is one. One that cannot be read leaves the keys as they are."""
        try:
            secret = await asyncio.to_thread(_read, self._path)
        except OSError:
            return bool(self.keys)
        key = derived(secret)
        if secret.strip() and key not in self.keys[:1]:
            self.keys = (key, *self.keys[:1])
        return bool(self.keys)


def _read(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(_MAX_SECRET)
