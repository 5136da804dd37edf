"""A small dense model of the size of a pruned one, by FedAvg: what pruning has to beat."""
