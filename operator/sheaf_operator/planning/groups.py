"""Members sorted into groups by name: the cross indices of the fleet."""

from collections.abc import KeysView


class Groups:
    """Which members belong to which group; a member belongs to one group at most."""

    def __init__(self) -> None:
        self._members: dict[str, dict[str, None]] = {}

    def move(self, member: str, before: str | None, after: str | None) -> None:
        """Take the member out of one group and put it into another; None: no group."""
        if before == after:
            return
        if before is not None:
            left = self._members[before]
            del left[member]
            if not left:
                del self._members[before]
        if after is not None:
            self._members.setdefault(after, {})[member] = None

    def of(self, group: str) -> list[str]:
        """The members of a group, by name."""
        return sorted(self._members.get(group, ()))

    def size(self, group: str) -> int:
        """How many members a group has."""
        return len(self._members.get(group, ()))

    def names(self) -> KeysView[str]:
        """The groups that have members."""
        return self._members.keys()
