"""What should exist: pure decisions."""
