"""What a pod's replacement is warmed with: remembered, chosen and rewritten. Pure."""
