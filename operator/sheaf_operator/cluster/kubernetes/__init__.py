"""Sheaf on Kubernetes: kopf watches, a few raw API calls write, long-polls ask the agents in the pods."""
