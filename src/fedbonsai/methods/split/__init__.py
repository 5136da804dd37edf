"""Networks that are cut over devices: SplitFed, local-loss split learning, and clusters that train an ensemble."""
