"""The agent beside the engine: fetches, checks, loads and reports adapters; supervises drain."""
