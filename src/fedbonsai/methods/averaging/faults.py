"""What settings of averaging cannot stand beside each other, each with its reason and what to do."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fedbonsai.methods.averaging.server import Plain
from fedbonsai.settings import NOT_NEGATIVE, POSITIVE, out_of_range, when
from fedbonsai.stages.codec.sparsifiers import RandK
from fedbonsai.stages.secure.noise import faults as of_noise
from fedbonsai.stages.secure.settings import refused
from fedbonsai.stages.updates import idle_ramp
from fedbonsai.stages.weighting import Weighting

if TYPE_CHECKING:
    from fedbonsai.methods.averaging.method import Averaging


def of_settings(how: Averaging) -> list[str]:
    """Settings that have no effect or no meaning, or that cannot stand beside each other."""
    sparse, feedback = how.uplink.sparsifier, how.uplink.feedback
    reset = feedback.reset if feedback is not None and feedback.estimates else 0
    return (
        when(
            (
                bool(how.warmup) and (sparse is None or sparse.share is None),
                f"warmup = {how.warmup} has no effect without a share of topk in uplink: leave it out",
            ),
            idle_ramp(how.uplink, how.ramp),
            (
                how.warmup > 0 and how.ramp > 0,
                f"warmup = {how.warmup} and ramp = {how.ramp} both widen the first rounds: leave one out",
            ),
            (
                reset > 0,
                f"ef21.reset = {reset}: the server keeps one mean of all estimates, of which it "
                "cannot take one device's back; leave reset out",
            ),
            (
                how.uplink.estimates and (how.weighting != Weighting() or how.ramp > 0),
                "ef21 sends changes of an estimate, which neither weighting nor ramp can change: use ef14",
            ),
            (
                how.aggregate_feedback and not (how.uplink.stages and how.downlink.delta),
                "aggregate_feedback needs codecs in uplink, and devices that know the last global change: set "
                "downlink.delta = true",
            ),
            (
                how.aggregate_feedback and (feedback is not None or how.weighting.needs_distances or how.ramp > 0),
                "aggregate_feedback takes the place of ef14 and ef21, and sends no updates that a ramp or weights by "
                "distance could use: leave one out",
            ),
            (
                how.sticky.group > 0 and (how.uplink.estimates or how.weighting.needs_distances),
                "sticky counts updates by how likely their devices were asked, which neither ef21 nor weights by "
                "distance bear: leave one out",
            ),
            (
                how.uplink.estimates and how.server != Plain(),
                f"server = {how.server.choice_name}: ef21 sends changes of an estimate, no steps: use ef14",
            ),
        )
        + how.mean.beside(
            {
                "ef21 sends changes of an estimate": how.uplink.estimates,
                "weighting says how much each device counts": how.weighting != Weighting(),
                "sticky counts devices by how likely they were asked": how.sticky.group > 0,
                "aggregate_feedback needs the mean of what devices left out": how.aggregate_feedback,
                "privacy clips every change and needs their sum": how.privacy.on,
                "secure shows no single change": bool(how.secure),
            }
        )
        + when(
            (
                how.privacy.on and (how.weighting != Weighting() or how.sticky.group > 0 or how.aggregate_feedback),
                "privacy.clip: devices count alike and are asked by chance alone, and an update is what was learned here: "
                "leave weighting, sticky and aggregate_feedback out",
            ),
        )
        + how.privacy.faults(how.uplink)
        + of_noise(how.privacy, how.secure)
        + how.sticky.faults(how.cohort)
        + in_the_open(how)
        + how.secure.faults(how.cohort)
        + out_of_range(how, ramp=NOT_NEGATIVE, rate=POSITIVE)
    )


def of_buffered(how: Averaging) -> list[str]:
    """Reasons why rounds cannot end with the first answers while other devices work on; empty where they can."""
    return when(
        (
            not how.uplink.stages,
            "devices must send changes, since what they began from is not the model of now: set method.uplink, to "
            "['fp32'] if nothing shall be lost",
        ),
        (how.uplink.estimates, "ef21's estimates need each round's answers in that round: use ef14"),
        (
            how.weighting.needs_distances,
            "weights by distance compare the changes of one round: leave method.weighting out",
        ),
        (bool(how.secure), "a secure sum is of one round's devices: leave method.secure out"),
        (how.privacy.on, "privacy samples devices anew in each round: leave method.privacy out"),
        (not how.mean.streams, "a robust mean lets every answer count alike, old ones too: leave method.mean out"),
        (how.aggregate_feedback, "aggregate_feedback is of the last round's change: use ef14"),
        (how.sticky.group > 0, "buffer.concurrency draws who works: leave method.sticky out"),
        (
            how.downlink.delta,
            "downlink.delta must know which version a device holds, which answers of earlier rounds do not say: leave it "
            "out; a chain that sends the model coded can stay",
        ),
    )


def in_the_open(how: Averaging) -> list[str]:
    """What needs to see each update, where they are summed up in secret."""
    sparse = how.uplink.sparsifier
    known = not how.uplink.stages or (isinstance(sparse, RandK) and len(how.uplink.stages) == 1)
    uses = {
        "uplink": (
            not known,
            "codes are of fixed point, of coordinates that all devices know: leave it empty, or [{randk = 0.1}]",
        ),
        "weighting": (how.weighting != Weighting(), "updates are weighed by secure.examples"),
        "sticky": (how.sticky.group > 0, "weighs each device by its own factor"),
        "aggregate_feedback": (how.aggregate_feedback, "packs what each device differs by"),
        "ramp": (how.ramp > 0, "widens an uplink by topk"),
        "warmup": (how.warmup > 0, "widens an uplink by topk"),
    }
    return refused(how.secure, uses)
