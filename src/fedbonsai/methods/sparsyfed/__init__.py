"""SparsyFed: weights as powers of what is trained, pruned once after local training."""
