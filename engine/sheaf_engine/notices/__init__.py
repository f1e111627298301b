"""What a cloud's metadata service says of a machine that will go: its answers in, notices out. Pure."""
