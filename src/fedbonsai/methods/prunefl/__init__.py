"""PruneFL: one device prunes a dense model, then FedAvg trains under a mask that is rebuilt to gain mo."""
