"""The gateway: one OpenAI-compatible endpoint over a fleet of engine pods."""
