"""What the tests of the chart share: helm, and what a rendered object must be."""
