"""Bounds of what is read from the network; in a module that imports nothing, so that an app starts quickly."""

HEAD = 1 << 16  # bytes; no head is larger
PAYLOAD = 1 << 31  # bytes; no payload is larger
STYPE = "fedbonsai/1"  # of the packed array
