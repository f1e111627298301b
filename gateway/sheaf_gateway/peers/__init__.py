"""Carrying what gateways tell each other: between the workers of a machine, and between replicas."""
