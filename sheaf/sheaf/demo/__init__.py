"""The demo: real models and adapters on this machine, asked and judged (`make demo`)."""
