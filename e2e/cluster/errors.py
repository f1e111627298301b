"""What can go wrong, said in one line that tells how to mend it."""


class ClusterError(Exception):
    """The cluster cannot be built, started or asked; the message says why and how to mend it."""


class Unsupported(ClusterError):  # noqa: N818 - not a fault: this machine simply cannot run it
    """This machine cannot run the cluster at all (no root, not Linux)."""
