"""`sheaf validate` and `sheaf digest`: what can be known without running anything."""

from collections import Counter
from pathlib import Path
from typing import Annotated

import typer
from sheaf_crds.digest import directory_digest

from sheaf.cli.errors import CliError
from sheaf.local.manifests import NoManifestsError, read_files, require_files

PLURALS = {"Model": "Models", "Adapter": "Adapters", "SLO": "SLOs", "AutoscalingPolicy": "AutoscalingPolicies"}


def validate(paths: Annotated[list[Path], typer.Argument(help="Manifest files, or folders of them.")]) -> int:
    """Check manifests: one line for each mistake, with file, line, field and remedy."""
    try:
        reading = read_files(require_files(paths))
    except NoManifestsError as error:
        raise CliError(str(error)) from error
    for problem in reading.problems:
        print(problem)
    if reading.problems:
        return 1
    kinds = Counter(type(item).__name__ for content in reading.files.values() for item in content.objects)
    counted = ", ".join(f"{count} {kind if count == 1 else PLURALS[kind]}" for kind, count in sorted(kinds.items()))
    print(f"{counted or 'no objects'} in {len(reading.files)} {'file' if len(reading.files) == 1 else 'files'}: fine")
    return 0


def digest(directory: Annotated[Path, typer.Argument(help="Folder of an adapter.")]) -> None:
    """Print the digest of an adapter, as spec.digest wants it."""
    try:
        print(directory_digest(directory))
    except OSError as error:
        why = error.strerror or str(error)
        raise CliError(f"{directory}: {why}" if error.strerror else why) from error
