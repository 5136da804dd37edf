"""Wireless pruning with personal parts (PMP-style, re-derived): prune so far that a round over a share."""
