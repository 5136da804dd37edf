"""Wireless pruning on MNIST: settings, results, and the specification's checks 13 and 16 on them."""
