"""Whose prefix caches a request may share: a salt for each tenant, which engines put into the identity of KV blocks.

The salt is an HMAC of the tenant's name, so that nobody who can read one tenant's requests can guess another's. Without
a configured secret each process makes one up: caches are as safe, but gateways do not share them and a restart begins
cold. Requests without a tenant, which are those of a gateway without keys, are not salted.
"""

import hashlib
import hmac
import os

_MAX_TENANTS = 100_000
_WHITE = b" \t\r\n"


class Salts:
    """The salts of tenants, each computed once."""

    def __init__(self, secret: bytes = b"") -> None:
        self._secret = secret or os.urandom(32)
        self._salts: dict[str, str] = {"": ""}

    def of(self, tenant: str) -> str:
        """The tenant's salt, 64 hexadecimal digits; empty without a tenant."""
        salt = self._salts.get(tenant)
        if salt is None:
            if len(self._salts) >= _MAX_TENANTS:
                self._salts = {"": ""}
            salt = self._salts[tenant] = hmac.new(self._secret, tenant.encode(), hashlib.sha256).hexdigest()
        return salt


def salted(body: bytes, salt: str) -> bytes:
    """A JSON object with `cache_salt` as its last key, which therefore counts, whatever the caller wrote before."""
    whole = body.rstrip(_WHITE)
    return b'%b,"cache_salt":"%b"}' % (whole[:-1], salt.encode("ascii"))
