"""MOON: pull a client's features towards the global model's and away from those of its own model of last time."""
