"""Devices as data: how fast they compute and send, what they draw and hold, and the arithmetic of a virtual clock."""
