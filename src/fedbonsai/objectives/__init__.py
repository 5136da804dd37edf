"""What is learned: losses, the measures of models, and which one decides."""

from fedbonsai.objectives.base import MEASURES, Measure, Objective, measure_named, objective
from fedbonsai.objectives.binary import Binary, Multilabel
from fedbonsai.objectives.classification import Classification
from fedbonsai.objectives.regression import Regression
from fedbonsai.objectives.tokens import Tokens

__all__ = [
    "MEASURES",
    "Binary",
    "Classification",
    "Measure",
    "Multilabel",
    "Objective",
    "Regression",
    "Tokens",
    "measure_named",
    "objective",
]
