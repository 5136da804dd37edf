"""What `fedbonsai.training` was called: methods of one's own that say ``local.train`` go on to work."""

from fedbonsai.training import SGD, Score, Trained, batches, evaluate, gradient, train

__all__ = ["SGD", "Score", "Trained", "batches", "evaluate", "gradient", "train"]
