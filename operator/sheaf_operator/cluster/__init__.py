"""Where decisions are carried out: one protocol, a Kubernetes implementation."""
