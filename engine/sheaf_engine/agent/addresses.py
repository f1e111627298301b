"""Which network addresses an https:// source may be on: a pure decision over parsed addresses.

An IPv6 address that carries an IPv4 address in it (mapped, compatible, NAT64, 6to4) is judged by both: a translator
on the way would deliver to the inner one. Only addresses that are globally reachable pass.
"""

from ipaddress import IPv4Address, IPv6Address, IPv6Network, ip_address

Address = IPv4Address | IPv6Address

_NAT64 = IPv6Network("64:ff9b::/96")
_NAT64_LOCAL = IPv6Network("64:ff9b:1::/48")
_COMPATIBLE = IPv6Network("::/96")


def inner_ipv4(address: IPv6Address) -> IPv4Address | None:
    """The IPv4 address that a translator or tunnel would take from an IPv6 address."""
    if address.ipv4_mapped is not None:
        return address.ipv4_mapped
    if address.sixtofour is not None:
        return address.sixtofour
    if address in _NAT64 or address in _COMPATIBLE:
        return IPv4Address(int(address) & 0xFFFF_FFFF)
    return None


def _kind(address: Address) -> str | None:
    for name in ("loopback", "link_local", "multicast", "unspecified", "private", "reserved"):
        if getattr(address, f"is_{name}"):
            return name.replace("_", "-")
    if address.version == 6 and address.is_site_local:
        return "site-local"
    return None if address.is_global else "not globally reachable"


def not_public(address: Address) -> str | None:
    """Why the address is not a public one (`loopback`, `private`, ...); None where it is."""
    if isinstance(address, IPv4Address):
        return _kind(address)
    inner = inner_ipv4(address)
    if inner is not None:
        return _kind(inner) or (None if address.ipv4_mapped is not None or address in _NAT64 else _kind(address))
    if address in _NAT64_LOCAL or address.teredo is not None or address.scope_id is not None:
        return "not globally reachable"
    return _kind(address)


def vet(texts: list[str], *, allow_private: bool) -> tuple[list[str], str | None]:
    """The addresses in their normal form, and why they may not be used: one bad address condemns all.

    A name that resolves to a public and a private address at once is an attempt at rebinding, not a service.
    """
    addresses = [ip_address(text) for text in texts]
    for address in addresses:
        why = None if allow_private else not_public(address)
        if why is not None:
            return [], f"{address} is {why}"
    return [str(address) for address in addresses], None
