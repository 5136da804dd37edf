"""Sub-networks by what a device bears: which part of a network each gets, and the mean that counts who holds a value."""
