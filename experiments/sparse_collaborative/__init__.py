"""Digits, all topologies: settings, results, and specs/collaborative C13 to C16 on them."""
