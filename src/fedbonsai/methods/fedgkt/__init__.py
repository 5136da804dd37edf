"""FedGKT: small networks on the devices, a larger one on the server, and knowledge passed between them."""
