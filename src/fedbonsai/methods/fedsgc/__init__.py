"""FedSGC: masks that clients readjust, with regard to where the global model is going."""
