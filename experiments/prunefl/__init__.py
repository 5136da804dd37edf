"""PruneFL on digits: settings, results, specs/prunefl §8.15 and §8.17 and the main table."""
