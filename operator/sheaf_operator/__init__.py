"""The operator: turns declared objects into engine pods."""
