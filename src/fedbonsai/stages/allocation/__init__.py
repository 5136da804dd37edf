"""Who gets how much of the uplink and how far each prunes, so that a round meets its deadline.

The problem is that of PMP (Liu, Ratnarajah, Sellathurai, Eldar 2024) in words; the cost model, the closed forms and the
solvers are re-derived in specs/wireless §2 and §4, and checked by independent solvers.
"""

from fedbonsai.stages.allocation.baselines import alternating, decoupled, drop_stragglers, equal_bandwidth
from fedbonsai.stages.allocation.blocks import allocate_blocks
from fedbonsai.stages.allocation.common import common_ratio
from fedbonsai.stages.allocation.energy import Energy
from fedbonsai.stages.allocation.infeasible import admit, aged, rescued
from fedbonsai.stages.allocation.late import truncated
from fedbonsai.stages.allocation.linear import allocate_linear
from fedbonsai.stages.allocation.minmax import min_latency
from fedbonsai.stages.allocation.pieces import pieces
from fedbonsai.stages.allocation.problem import Flags, Floats, Load, Plan
from fedbonsai.stages.allocation.surrogate import PruningError
from fedbonsai.stages.allocation.waterfill import allocate

__all__ = [
    "Energy",
    "Flags",
    "Floats",
    "Load",
    "Plan",
    "PruningError",
    "admit",
    "aged",
    "allocate",
    "allocate_blocks",
    "allocate_linear",
    "alternating",
    "common_ratio",
    "decoupled",
    "drop_stragglers",
    "equal_bandwidth",
    "min_latency",
    "pieces",
    "rescued",
    "truncated",
]
