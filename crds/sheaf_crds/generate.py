"""Write everything that is made from the API types: the CustomResourceDefinitions and docs/api.md.

python -m sheaf_crds.generate            # write
python -m sheaf_crds.generate --check    # write nothing; print what differs and exit 1
"""

import argparse
import difflib
import sys
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path

import yaml

from sheaf_crds import KINDS
from sheaf_crds.base import GROUP
from sheaf_crds.reference import api_reference
from sheaf_crds.schema import custom_resource_definition

ROOT = Path(__file__).resolve().parents[2]
_HEADER = "# Generated from the types in crds/sheaf_crds by `make generate`; edit those instead.\n"


class _Dumper(yaml.SafeDumper):
    """YAML without anchors: a reader and a diff see every field where it is."""

    def ignore_aliases(self, data: object) -> bool:  # noqa: ARG002 - PyYAML's signature
        return True


@cache
def generated_files() -> dict[str, str]:
    """What every generated file must hold, by path from the root of the repository."""
    files = {"docs/api.md": api_reference(tuple(KINDS.values()))}
    for kind in KINDS.values():
        body = yaml.dump(custom_resource_definition(kind), Dumper=_Dumper, sort_keys=False, width=120)
        files[f"crds/{GROUP}_{kind.PLURAL}.yaml"] = _HEADER + body
    return files


def differences(root: Path) -> Iterator[str]:
    """Unified diff lines from what lies under root to what should."""
    for name, wanted in generated_files().items():
        path = root / name
        found = path.read_text(encoding="utf-8") if path.is_file() else ""
        yield from difflib.unified_diff(
            found.splitlines(), wanted.splitlines(), name, f"{name} (generated)", lineterm=""
        )


def write(root: Path) -> None:
    """Write every generated file under root."""
    for name, content in generated_files().items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content, encoding="utf-8")


def main(arguments: Sequence[str] | None = None, root: Path = ROOT) -> int:
    """Write, or with --check compare; the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m sheaf_crds.generate", description="Write the CRDs and docs/api.md."
    )
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 where a file differs")
    if not parser.parse_args(arguments).check:
        write(root)
        return 0
    lines = list(differences(root))
    sys.stdout.writelines(f"{line}\n" for line in lines)
    if lines:
        sys.stderr.write("generated files are out of date; run `make generate` and commit them\n")
    return 1 if lines else 0


if __name__ == "__main__":
    sys.exit(main())
