"""Ways to choose a pod: the product's own, and the published ones of its peers."""
