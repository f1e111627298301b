"""What runs in the engine pod: the agent, the kernels, the emulator and its timing model."""
