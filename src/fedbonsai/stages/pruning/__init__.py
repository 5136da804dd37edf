"""Pruning on four axes that do not know each other: score, structure, distribution over layers, schedule.

The factoring is JaxPruner's (Lee et al. 2023). A mask is a tree of booleans by parameter name, True where a weight is
kept; parameters without a mask are dense.
"""
