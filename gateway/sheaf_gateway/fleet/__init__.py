"""What the gateway knows of models, adapters and pods."""
