"""PruneFL on digits: settings, results, the specification's statistical checks and the main table."""
