"""Differential privacy of devices: clipped changes, noise on their sum, and an account of every release."""
