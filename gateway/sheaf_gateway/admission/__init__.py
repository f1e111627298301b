"""Whether a request may enter now: pure decisions."""
