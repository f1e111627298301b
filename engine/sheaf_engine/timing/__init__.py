"""The engine timing model: a pure library in virtual time."""
