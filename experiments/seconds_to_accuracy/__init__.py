"""Seconds of computing to an accuracy, with sparse compute and without."""
