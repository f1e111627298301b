"""Which pod answers soonest: pure decisions."""
