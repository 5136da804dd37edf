"""FedAvg and FedProx, with anything on the way up and down: train locally, average by examples."""
