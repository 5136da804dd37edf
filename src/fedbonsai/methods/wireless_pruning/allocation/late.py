"""The upload by the channel as it turned out: bands anew, and less sent where that is late (specs/wireless §7.2).

A ratio is chosen before training, by a predicted channel; the uplink is seen after it. What was trained stays; each
device may send only the largest of its kept entries, and its mask shrinks for the mean.
"""

from __future__ import annotations

from math import inf
from typing import Literal

import numpy as np

from fedbonsai.methods.wireless_pruning.allocation.baselines import left_out
from fedbonsai.methods.wireless_pruning.allocation.infeasible import admit
from fedbonsai.methods.wireless_pruning.allocation.minmax import min_latency
from fedbonsai.methods.wireless_pruning.allocation.plan import no_plan, planned
from fedbonsai.methods.wireless_pruning.allocation.problem import Floats, Load, Plan, importance
from fedbonsai.methods.wireless_pruning.allocation.rate import rate
from fedbonsai.methods.wireless_pruning.allocation.waterfill import allocate


def truncated(
    load: Load,
    snr: Floats,
    deadline: float,
    bandwidth: float,
    kept: Floats,
    elapsed: Floats | None = None,
    weights: Floats | None = None,
    by: Literal["optimum", "min_max"] = "optimum",
    *,
    least: float = 0.01,
    cap: float = inf,
) -> Plan:
    """What each device sends, on what band, once training is over.

    Where the shortest upload is in time, everything is sent. Where not, ``optimum`` divides the band so that the least
    weighted fraction is withheld, whom it cannot serve is left out; ``min_max`` keeps the bands of the shortest upload and
    cuts on them, which one device in a deep fade makes dear for all.

    Args:
        load: of each device that trained.
        snr: true SNR-bandwidth products, Hz.
        deadline: seconds of the round, from its start.
        bandwidth: Hz, for all together.
        kept: kept fractions that were trained, in (0, 1].
        elapsed: seconds from the round's start to the end of training; by the load where not measured.
        weights: of the objective, as in `allocate`.
        by: how bands are divided where the shortest upload is late.
        least: least part of its kept entries that is worth sending; of ``optimum``.
        cap: most bit/s/Hz.

    Returns:
        A plan whose ratio is 1 minus the fraction of the prunable weights that is sent, whose seconds count from the
        round's start, and whose active devices are in time.

    Raises:
        ConfigError: arrays that do not fit, or numbers out of range.
    """
    kept = np.broadcast_to(np.asarray(kept, np.float64), load.s0.shape)
    spent = load.before_upload(kept) if elapsed is None else np.asarray(elapsed, np.float64)
    upload = Load(spent, np.zeros(len(load)), load.s0, load.s1 * kept)
    seconds, bands = min_latency(upload, snr, bandwidth, cap=cap)
    everybody = np.ones(len(load), np.bool_)
    if seconds <= deadline:
        plan = planned(upload, snr, cap, everybody, np.zeros(len(load)), bands)
    elif by == "optimum":
        alpha = importance(weights, len(load)) * kept
        served = admit(upload, snr, deadline, bandwidth, 1 - least, cap=cap)
        plan = allocate(upload, snr, deadline, bandwidth, alpha, 1 - least, cap=cap, among=served)
    else:
        room = np.maximum(deadline - spent, 0) * rate(bands, snr, cap) - upload.s0
        part = np.divide(room, upload.s1, out=np.where(room >= 0, 1.0, -1.0), where=upload.s1 > 0)
        served = (part > 0) & (spent <= deadline)
        if not served.any():
            return no_plan(len(load), "no device can send anything in time")
        plan = planned(upload, snr, cap, served, 1 - np.minimum(part[served], 1), bands[served])
    sent = np.where(plan.active, (1 - plan.ratio) * kept, 1.0)
    reason = left_out(plan.active) if plan.feasible else plan.reason
    return Plan(1 - sent, plan.bandwidth, plan.active, plan.seconds, reason, plan.limited, plan.multiplier)
