"""kopf handlers: observe, plan, act."""
