"""Settings and committed results, one folder an experiment."""
