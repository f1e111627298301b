"""`python -m sheaf.demo [--keep] [--listen HOST:PORT] [--cache-dir DIR]`."""

import argparse
import sys
from pathlib import Path

from sheaf.demo.run import run


def main() -> int:
    """The demo's exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m sheaf.demo", description="Serve two real models and four adapters."
    )
    parser.add_argument("--keep", action="store_true", help="stay up until Ctrl-C")
    parser.add_argument("--listen", default="127.0.0.1:8000", help="HOST:PORT of the endpoint")
    parser.add_argument("--cache-dir", type=Path, help="where models and adapters are kept")
    given = parser.parse_args()
    return run(given.listen, given.cache_dir, keep=given.keep)


if __name__ == "__main__":
    sys.exit(main())
