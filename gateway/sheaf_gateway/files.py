"""How many files and sockets this process may have open, and how they are shared out.

Shells and service managers often start a process with room for 1,024 although it may have many more. Without room a
gateway could not reach its engines any more while clients hold all of it.
"""

import resource

_ENGINES_SHARE = 4
_MOST = 2**20


def raise_limit() -> int:
    """Take all that the system allows; the number of files that may be open now."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    now, allowed = _count(soft), min(_count(hard), _MOST)
    if now >= allowed:
        return now
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (allowed, hard))
    except (OSError, ValueError):
        return now
    return allowed


def for_clients(files: int, wanted: int) -> int:
    """Client connections that may be open: as many as `wanted`, but a quarter of the files stays for engines, agents
    and the rest."""
    return max(1, min(wanted, files - files // _ENGINES_SHARE))


def _count(limit: int) -> int:
    return 2**31 if limit == resource.RLIM_INFINITY else limit
