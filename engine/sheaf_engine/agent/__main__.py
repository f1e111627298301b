"""`python -m sheaf_engine.agent`."""

import sys

from sheaf_engine.agent.cli import main

if __name__ == "__main__":
    sys.exit(main())
