"""Means that a few lying devices cannot turn: what a server makes of all updates of a round, where not all can be trusted."""

from fedbonsai.stages.robust.ballot import Ballot, Elected
from fedbonsai.stages.robust.coordinates import Median, Trimmed
from fedbonsai.stages.robust.rule import Decided, MeanRule, Plain
from fedbonsai.stages.robust.vectors import Bounded, Geometric, Krum
from fedbonsai.stages.robust.votes import Votes

__all__ = [
    "Ballot",
    "Bounded",
    "Decided",
    "Elected",
    "Geometric",
    "Krum",
    "MeanRule",
    "Median",
    "Plain",
    "Trimmed",
    "Votes",
]
