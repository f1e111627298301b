"""Sheaf on a real cluster while things go wrong: what the tests share, and the tests."""
