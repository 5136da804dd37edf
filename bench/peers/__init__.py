"""The same federated work in this library and in others, each in a process and an environment of its own."""
