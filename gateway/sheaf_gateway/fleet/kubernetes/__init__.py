"""The fleet from a Kubernetes API server: listed, watched, and kept while the server is away."""
