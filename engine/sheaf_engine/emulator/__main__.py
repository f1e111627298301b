"""``python -m sheaf_engine.emulator --model NAME ...``."""

from __future__ import annotations

import logging
import sys

import structlog
import uvloop

from sheaf_engine.emulator.options import OptionError, environment, parse
from sheaf_engine.emulator.server import listen, serve_until_signal


def main() -> int:
    """Run until a signal; 0 after a clean stop, 1 with one line on stderr when it cannot run."""
    structlog.configure(
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
        wrapper_class=structlog.make_filtering_bound_logger(logging.INFO),
    )
    try:
        options = parse(sys.argv[1:], environment())
        if options.ignored:
            structlog.get_logger(__name__).info("vLLM flags without effect here", flags=" ".join(options.ignored))
        uvloop.run(serve_until_signal(options, listen(options)))
    except OptionError as error:
        sys.stderr.write(f"emulator: {error}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
