"""FedRolex: devices train a window of each layer's channels that moves on by one with every round."""
