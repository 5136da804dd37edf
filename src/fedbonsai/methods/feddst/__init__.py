"""FedDST: a sparse model from the start, whose masks the clients readjust now and then and the server ."""
