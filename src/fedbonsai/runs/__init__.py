"""A run: its configuration, its loop, its files."""
