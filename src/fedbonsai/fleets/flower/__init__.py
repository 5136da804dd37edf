"""Clients behind Flower: a `Fleet` over its Grid, the ClientApp of all methods, and the device's own memory.

Only modules of this package import flwr; without it everything else of the library works.
"""

from fedbonsai.fleets.flower import compat

compat.require()
