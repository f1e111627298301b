"""Continuing a stream on another engine from the tokens already sent: pure, no I/O and no clock."""
