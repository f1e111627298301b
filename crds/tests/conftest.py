"""The CEL library takes long to load, which no single test should pay for."""

import cel  # noqa: F401
