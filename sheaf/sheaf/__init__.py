"""The composition root: the command line, the local cluster, the simulator."""
