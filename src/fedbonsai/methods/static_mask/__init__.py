"""Baselines with one mask for all: SNIP, SynFlow, random and magnitude masks, iterative pruning, lotte."""
