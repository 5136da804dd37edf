"""HeteroFL: devices train the first channels of each layer, as many as they bear, and values are averaged over who holds them."""
