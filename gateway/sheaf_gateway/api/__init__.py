"""The surface that callers see: OpenAI routes, errors, keys, management."""
