"""Flower is imported here as it is for the tests of its fleet."""

import tests.fleets.flower.conftest  # noqa: F401
