"""One paper: one module, and one card (.md) beside it."""
