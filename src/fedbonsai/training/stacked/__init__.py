"""Several clients trained at once, as one computation over their stacked weights."""
