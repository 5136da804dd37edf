"""Which recipe, network, density and codec for these data, devices, links and limits: a search that trains what it judges."""
