"""Fewest bytes in both directions."""
