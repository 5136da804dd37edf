"""FIARSE: each device trains the largest weights of the global network, as many as it bears."""
