"""`sheaf profile`: a bounded load on a real engine, and what follows from it for the timing model."""
