"""A real Kubernetes on one machine, for tests: ``python e2e/cluster up`` (see docs/testing.md)."""
