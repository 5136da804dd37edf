"""Digits, all topologies: settings, results, and the specification's checks on them."""
