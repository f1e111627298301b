"""A process that speaks vLLM's HTTP API over a timing model instead of a model."""
