"""The one local training, the one gradient and the one evaluation."""

from fedbonsai.training.batches import augmented, batches, epochs
from fedbonsai.training.evaluate import Score, evaluate, judged
from fedbonsai.training.gradients import draws, gradient, gradients
from fedbonsai.training.loop import train
from fedbonsai.training.optimizers import SGD, descend
from fedbonsai.training.sparse import train_growing
from fedbonsai.training.steps import Hook, Loss, Trained

__all__ = [
    "SGD",
    "Hook",
    "Loss",
    "Score",
    "Trained",
    "augmented",
    "batches",
    "descend",
    "draws",
    "epochs",
    "evaluate",
    "gradient",
    "gradients",
    "judged",
    "train",
    "train_growing",
]
