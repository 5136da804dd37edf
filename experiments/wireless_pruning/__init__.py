"""Wireless pruning on MNIST: settings, results, and specs/wireless check 13 and check 16 on them."""
