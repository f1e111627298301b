"""Entry point: ``python e2e/cluster COMMAND`` from the repository's root."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from cluster.cli import main

sys.exit(main())
