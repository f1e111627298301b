"""Ids of `/v1/responses`, by which any gateway finds the pod that keeps a response, and whose it is, with no memory.

Engines keep responses in their own memory and take the id from the request, so the gateway gives it: `resp_`, 64 random
bits, 64 bits that say which pod, and a MAC of both under the tenant's salt, all in hexadecimal. It tells nobody who the
tenant is, and an id of one tenant is none to another. Without tenants there is nothing to keep apart, and the MAC only
finds what was mistyped.
"""

import functools
import hashlib
import hmac
import re
import secrets
from collections.abc import Iterable

import xxhash

from sheaf_gateway.fleet.view import Pod

_FORM = re.compile(r"resp_([0-9a-f]{16}([0-9a-f]{16}))([0-9a-f]{16})")
_BYTES = 8
_WHITE = b" \t\r\n"


def fresh(pod: str, salt: str) -> str:
    """A new id of a response that this pod will keep for the tenant with this salt."""
    said = secrets.token_hex(_BYTES) + _place(pod)
    return f"resp_{said}{_proof(said, salt)}"


def holder(response_id: str, salt: str, pods: Iterable[Pod]) -> Pod | None:
    """The pod among these that keeps a response of the tenant with this salt; None where there is none."""
    found = _FORM.fullmatch(response_id)
    if found is None or not hmac.compare_digest(found[3], _proof(found[1], salt)):
        return None
    return next((pod for pod in pods if _place(pod.name) == found[2]), None)


def named(body: bytes, response_id: str) -> bytes:
    """A JSON object with that `request_id` as its last key, which therefore counts, whatever the caller wrote."""
    whole = body.rstrip(_WHITE)
    return b'%b,"request_id":"%b"}' % (whole[:-1], response_id.encode("ascii"))


@functools.lru_cache(maxsize=65_536)
def _place(pod: str) -> str:
    return f"{xxhash.xxh3_64_intdigest(pod.encode()):016x}"


def _proof(said: str, salt: str) -> str:
    return hmac.new(salt.encode(), said.encode(), hashlib.sha256).hexdigest()[: 2 * _BYTES]
