"""`sheaf version`."""

import importlib.metadata


def version() -> None:
    """Print the version."""
    print(f"sheaf {importlib.metadata.version('sheaf')}")
