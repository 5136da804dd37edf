"""FedMef: dynamic pruning that presses out weights before they go, and saves activations in part."""
