"""FedPM: masks over frozen random weights."""
