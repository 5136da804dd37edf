"""SCAFFOLD: correct every local step by the difference of a server and a client control variate."""
