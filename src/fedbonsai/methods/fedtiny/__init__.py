"""FedTiny: choose a coarsely pruned model by re-measured batch-norm statistics, then adjust its masks block by block."""
