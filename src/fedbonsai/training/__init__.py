"""The one local training, the one gradient and the one evaluation."""

from fedbonsai.training.batches import Views, batches, epochs
from fedbonsai.training.evaluate import Score, evaluate, evaluate_each
from fedbonsai.training.gradients import draws, gradient, gradients
from fedbonsai.training.loop import train
from fedbonsai.training.optimizers import SGD, Adam, AdamW, Moving, Optimizer, optimizer
from fedbonsai.training.own_loss import Made, OwnLoss, outputs
from fedbonsai.training.sparse import train_growing
from fedbonsai.training.steps import Hook, Loss, Trained

__all__ = [
    "SGD",
    "Adam",
    "AdamW",
    "Hook",
    "Loss",
    "Made",
    "Moving",
    "Optimizer",
    "OwnLoss",
    "Score",
    "Trained",
    "Views",
    "batches",
    "draws",
    "epochs",
    "evaluate",
    "evaluate_each",
    "gradient",
    "gradients",
    "optimizer",
    "outputs",
    "train",
    "train_growing",
]
