"""What devices are sent and do in the two passes of the selection, and what these may change."""

import pytest
import torch

from fedbonsai.errors import ConfigError, Forgotten
from fedbonsai.methods.fedtiny.selection import Evaluate, Measure, candidates, evaluate, measure, packed
from fedbonsai.model import Model
from fedbonsai.stages.updates import statistics_of
from fedbonsai.wire import encode
from fedbonsai.work import collecting
from tests.methods.fedtiny.pools import CNN, NAMES, drawn, person, request


@pytest.mark.parametrize("nested", [True, False])
def test_devices_see_the_same_candidates_however_they_are_sent(nested):
    model = Model.init(CNN, 0)
    model = model.replace({n: (v * 20).round() / 20 for n, v in model.weights.items()})  # many ties, and zeros
    counts = drawn(model)
    sent = Measure(model.arch, packed(model, counts, nested), tuple(counts), "cumulative", 0.1, "pooled", 64)
    assert len(sent.models) == (1 if nested else 3)
    for (found, masks), each in zip(candidates(sent), counts, strict=True):
        for name in NAMES:
            assert int(masks[name].sum()) == each[name]
            order = model.weights[name].flatten().abs().argsort(descending=True, stable=True)[: each[name]]
            want = torch.zeros(model.weights[name].numel())
            want[order] = model.weights[name].flatten()[order]
            assert torch.equal(found.weights[name].flatten(), want)
        rest = found.weights.keys() - set(NAMES)
        assert all(torch.equal(found.weights[name], model.weights[name]) for name in rest)


@pytest.mark.parametrize("statistics", ["cumulative", "ema"])
def test_both_passes_leave_weights_alone_and_statistics_move(statistics):
    model, me = Model.init(CNN, 0), person()
    sent = request(model, drawn(model), statistics=statistics)
    before = bytes(encode(sent))
    answer, memory = measure.run(sent, me, {"mine": 1})
    assert set(answer.statistics[0]) == set(statistics_of(model.weights))  # nothing else is uploaded
    assert answer.examples == 20
    for each in answer.statistics:
        assert all(not torch.equal(value, model.weights[name]) for name, value in each.items())
    judged, memory = evaluate.run(Evaluate(answer.statistics), me, memory)
    assert bytes(encode(sent)) == before
    assert memory == {"mine": 1}
    assert len(judged.losses) == 3
    with pytest.raises(Forgotten):
        evaluate.run(Evaluate(answer.statistics), me, memory)


def test_the_development_split_judges_where_there_is_one():
    model = Model.init(CNN, 0)
    answer, _ = measure.run(request(model, drawn(model)), person(valid=5), {})
    assert answer.examples == 5


@pytest.mark.parametrize("statistics", ["cumulative", "ema"])
def test_a_client_without_samples_is_told_so(statistics):
    model = Model.init(CNN, 0)
    with pytest.raises(ConfigError, match="no samples"):
        measure.run(request(model, drawn(model), statistics=statistics), person(count=0), {})


def test_passes_are_reported_as_work():
    sent = request(Model.init(CNN, 0), drawn(Model.init(CNN, 0)), batch=16)
    with collecting() as done:
        measure.run(sent, person(count=33), {})
    assert sum(episode.forward for episode in done) == 3 * 33
    assert sum(episode.passes for episode in done) == 3 * 2
    for episode, counts in zip(done, sent.counts, strict=True):
        for name in NAMES:
            assert episode.kept[name] == pytest.approx(counts[name] / Model.init(CNN, 0).weights[name].numel())
