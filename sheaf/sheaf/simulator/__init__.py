"""What a fleet would do with a trace: the product's own decisions under a virtual clock. docs/simulator.md."""
