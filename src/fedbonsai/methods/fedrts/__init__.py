"""FedRTS: masks drawn from what all rounds have told of each weight."""
