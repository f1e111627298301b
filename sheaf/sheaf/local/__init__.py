"""The local cluster: the same operator and gateway over processes."""
