"""Who gets how much of the uplink and how far each prunes, so that a round meets its deadline.

The problem is that of PMP (Liu, Ratnarajah, Sellathurai, Eldar 2024) in words; the cost model, the closed forms and the
solvers are re-derived in specs/wireless §2 and §4, and checked by independent solvers.
"""

from fedbonsai.methods.wireless_pruning.allocation.baselines import (
    alternating,
    decoupled,
    drop_stragglers,
    equal_bandwidth,
)
from fedbonsai.methods.wireless_pruning.allocation.blocks import allocate_blocks
from fedbonsai.methods.wireless_pruning.allocation.common import common_ratio
from fedbonsai.methods.wireless_pruning.allocation.energy import Energy
from fedbonsai.methods.wireless_pruning.allocation.infeasible import admit, aged
from fedbonsai.methods.wireless_pruning.allocation.late import truncated
from fedbonsai.methods.wireless_pruning.allocation.minmax import min_latency
from fedbonsai.methods.wireless_pruning.allocation.pieces import pieces
from fedbonsai.methods.wireless_pruning.allocation.problem import Flags, Floats, Load, Plan
from fedbonsai.methods.wireless_pruning.allocation.schedule import Problem, Schedule, scheduled, served
from fedbonsai.methods.wireless_pruning.allocation.surrogate import PruningError
from fedbonsai.methods.wireless_pruning.allocation.waterfill import allocate

__all__ = [
    "Energy",
    "Flags",
    "Floats",
    "Load",
    "Plan",
    "Problem",
    "PruningError",
    "Schedule",
    "admit",
    "aged",
    "allocate",
    "allocate_blocks",
    "alternating",
    "common_ratio",
    "decoupled",
    "drop_stragglers",
    "equal_bandwidth",
    "min_latency",
    "pieces",
    "scheduled",
    "served",
    "truncated",
]
