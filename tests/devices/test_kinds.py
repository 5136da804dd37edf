"""Operations and memory of networks of series, tables and tokens."""

import pytest

from fedbonsai.devices.footprint import Job, measure, trained
from fedbonsai.devices.memory import process_bytes, step_bytes
from fedbonsai.devices.networks import counted
from fedbonsai.devices.profile import profile
from fedbonsai.model import blank
from fedbonsai.stages.pruning.count import layer_macs
from fedbonsai.work import Episode
from tests.zoo.kinds import KINDS, WORDS, model

HERE = "intel-xeon-processor"
ATTENTION = 9 * (4 * 8 * 8 + 2 * 8 * 12) + 2 * 9 * 9 * 8  # of a block: projections, linear layers, products of places
MACS = {
    "cnn1d": 20 * 5 * 3 * 8 + 10 * 5 * 8 * 12 + 12 * 4,
    "ds-cnn": 11 * 5 * (40 * 8 + 9 * 8 + 8 * 8 + 9 * 8 + 8 * 12) + 12 * 4,
    "gru": 9 * 3 * 8 * (3 + 8 + 8 + 8) + 8 * 4,
    "tabular-mlp": 7 * 12 + 12 * 8 + 8,
    "char-gru": 9 * (3 * 8 * (16 + 8) + 8 * 11),
    "tokens": 2 * ATTENTION + 9 * 8 * 11,
    "series": 9 * 3 * 8 + 2 * ATTENTION + 8 * 4,
}


@pytest.mark.parametrize("kind", MACS)
def test_operations_by_hand(kind):
    made, sample = model(kind), KINDS[kind][2]
    assert sum(layer_macs(made, sample).values()) == MACS[kind]
    assert counted(Episode(made.arch, {}, sample)).unknown == ()


def test_operations_of_parts():
    made = model("tokens")
    found = counted(Episode(made.arch, {}, (9, 8), part="classifier"))
    assert sum(layer.macs for layer in found.layers) == 9 * 8 * 11
    assert blank(made.arch, (9, 8), part="features").is_floating_point()
    assert sum(layer.macs for layer in counted(Episode(made.arch, {}, (9,), part="stem")).layers) == 0


@pytest.mark.parametrize("kind", KINDS)
def test_networks_of_tokens_take_whole_numbers_and_others_do_not(kind):
    made, sample = model(kind), KINDS[kind][2]
    x = blank(made.arch, sample, 2)
    assert x.shape == (2, *sample)
    assert x.is_floating_point() == (kind not in WORDS)
    episode = Episode(made.arch, {}, sample, backward=8, batch=8)
    assert step_bytes(episode) > 4 * sum(value.numel() for value in made.weights.values())


def test_a_network_that_takes_nothing_of_this_shape_says_so_itself():
    with pytest.raises(RuntimeError):
        counted(Episode(model("gru").arch, {}, (9, 5)))


@pytest.mark.slow
@pytest.mark.parametrize(
    "job",
    [
        Job("cnn1d", (100, 6)),
        Job("gru", (100, 6)),
        Job("char-gru", (80,), tokens=True),
        Job("tiny-transformer", (80,), options={"vocabulary": 72}, tokens=True),
    ],
    ids=lambda job: job.name,
)
def test_predicted_and_real_peak_differ_by_less_than_15_percent(job):
    real, here = measure(job), profile(HERE)
    assert process_bytes(here, trained(job)) - here.runtime.value == pytest.approx(real.peak, rel=0.15)
