"""What clients are asked of their data before the first round: sums by hand, who is silent, kills, recordings, devices."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from tests.conformance import Killed, Mortal

from fedbonsai.core import Answers, Client, Samples, Silence
from fedbonsai.data import DataConfig
from fedbonsai.data.federation import load as load_data
from fedbonsai.data.statistics import mean_and_deviation, moments
from fedbonsai.data.survey import Ask, sums
from fedbonsai.errors import ConfigError, Unanswered
from fedbonsai.export.trained import Trained
from fedbonsai.fleets.ledger import Ledger
from fedbonsai.fleets.wrappers import Replayed, Wrapper
from fedbonsai.objectives import Binary, Classification, Multilabel
from fedbonsai.runs import recipes
from fedbonsai.runs.folder import Folder
from fedbonsai.runs.loop import loop
from fedbonsai.runs.run import execute, load
from fedbonsai.runs.setup import run_context
from fedbonsai.wire import encode

WHOSE = {"ann": 20, "bea": 30, "cid": 40}


@pytest.fixture(scope="module")
def rows(tmp_path_factory) -> Path:
    """Three clients of unequal sizes and places, two features far from zero, the rarer class a tenth."""
    folder = tmp_path_factory.mktemp("rows")
    random = np.random.default_rng(0)
    lines = [
        f"{random.normal(1e4 + 10 * number, 2):.4f},{random.normal(-3, 9):.4f},{int(row % 10 == 0)},{name}"
        for number, (name, count) in enumerate(WHOSE.items())
        for row in range(count)
    ]
    (folder / "train.csv").write_text("a,b,y,who\n" + "\n".join(lines) + "\n")
    (folder / "test.csv").write_text("a,b,y,who\n" + "\n".join(lines[::7]) + "\n")
    return folder


def config(rows, **more):
    settings = {
        "rounds": 2,
        "retries": 1,
        "data.path": str(rows),
        "data.client": "who",
        "data.partition": "natural",
        "data.clients": 0,
        "data.x": ["a", "b"],
        "data.transforms": [{"standardise": "clients"}],
        "objective.weights": "balanced",
        "model.name": "tabular-mlp",
        "model.options": {},
        "method.optimizer.lr": 0.1,
    }
    return recipes.load("fedavg", "", settings | more)


class Away(Wrapper):
    """Some devices are silent when they are asked about their data, in the first so many attempts."""

    def __init__(self, inner, who, attempts=99):
        super().__init__(inner)
        self.who, self.attempts = who, attempts

    def ask(self, task, send, at_least=1):
        scope, _ = self.where()
        if task.name != sums.name or scope.attempt >= self.attempts:
            return self.inner.ask(task, send, at_least)
        there = self.inner.ask(task, {d: m for d, m in send.items() if d.id not in self.who}, 0)
        return Answers([*there, *(Silence(d, "asleep") for d in send if d.id in self.who)], 0)


def told(fleet_of, rows, tmp_path, **more):
    """Facts of the survey of a run whose fleet is wrapped."""

    def build(*given):
        made = run_context(*given)
        made.fleet = fleet_of(made.fleet)
        return made

    run = execute(config(rows, **more), tmp_path / "run", build=build)
    return run, run.info["survey"]


def test_moments_are_those_of_all_values_however_they_are_divided():
    x = np.array([[1.0, 5], [2, 5], [3, 5], [10, 5]])
    first, second = moments(x[:2]), moments(x[2:])
    assert (first.mean.tolist(), first.squares.tolist()) == ([1.5, 5], [0.5, 0])
    assert (second.mean.tolist(), second.squares.tolist()) == ([6.5, 5], [24.5, 0])
    whole = first + second
    assert (whole.count, whole.mean.tolist()) == (4, [4, 5])
    assert whole.squares.tolist() == [0.5 + 24.5 + 5**2 * 2 * 2 / 4, 0]  # 9 + 4 + 1 + 36
    mean, deviation = mean_and_deviation([first, moments(x[:0]), second])
    assert (mean.tolist(), deviation.tolist()) == ([4, 5], [np.sqrt(12.5), 1])
    with pytest.raises(ConfigError, match="nobody has a sample"):
        mean_and_deviation([moments(x[:0])])


def test_what_is_far_from_zero_keeps_its_deviation():
    x = 2e5 + np.tile(
        [[0.0], [1.0], [2.0]], (1000, 1)
    )  # squares of 4e10: their sums have no digits left for a variance
    mean, deviation = mean_and_deviation([moments(x[:1000]), moments(x[1000:])])
    assert mean == pytest.approx(2e5 + 1, abs=1e-9)
    assert deviation == pytest.approx(np.sqrt(2 / 3), rel=1e-9)


def test_a_client_answers_with_sums_of_all_it_has_and_counts_of_what_it_trains_on():
    train = Samples(torch.tensor([[1, 2], [3, 4]], dtype=torch.int8), torch.tensor([0, 2]))
    me = Client("me", 0, train, Samples(torch.tensor([[8, 6]], dtype=torch.int8), torch.tensor([1])))
    answer, memory = sums.run(Ask(2, Classification(weights="balanced"), 3), me, {"kept": 1})
    assert (answer.examples, answer.values, memory) == (3, 3, {"kept": 1})
    assert (answer.mean.tolist(), answer.squares.tolist()) == ([4, 4], [26, 8])
    assert answer.targets.tolist() == [1, 0, 1]
    assert answer.fits(2, (3,))
    assert not answer.fits(3, (3,))
    assert not answer.fits(2, (2,))
    assert not replace(answer, squares=-answer.squares).fits(2, (3,))
    assert not replace(answer, mean=answer.mean * float("nan")).fits(2, (3,))
    picture = Samples(torch.arange(8, dtype=torch.uint8).view(1, 2, 2, 2), torch.tensor([0]))
    answer, _ = sums.run(Ask(2, None, 0), Client("me", 0, picture, picture[:0]), {})
    assert (answer.values, answer.mean.tolist(), answer.squares.tolist()) == (4, [1.5, 5.5], [5, 5])


def test_balanced_weights_by_hand():
    assert Classification(weights="balanced").balanced(torch.tensor([6, 3, 0, 3])).weights == (4 / 6, 4 / 3, 1.0, 4 / 3)
    assert Classification(weights="balanced").balanced(torch.tensor([0, 0])).weights == (1.0, 1.0)
    binary = Binary(positive="balanced")
    assert binary.counts(torch.tensor([0, 0, 0, 1]), 0).tolist() == [[3], [1]]
    assert binary.balanced(torch.tensor([[3], [1]])).positive == 3.0
    several = Multilabel(positive="balanced")
    counts = several.counts(torch.tensor([[0, 1, 0], [0, 0, 0], [1, 1, 0]]), 0)
    assert counts.tolist() == [[2, 1, 3], [1, 2, 0]]
    assert (made := several.balanced(counts)).positive == (2.0, 0.5, 1.0)
    y, logits = torch.tensor([[1, 1, 1]]), torch.zeros(1, 3)
    assert float(made.loss(logits, y)) == pytest.approx(np.log(2) * (2 + 0.5 + 1) / 3)


def test_what_clients_say_together_is_what_their_pooled_samples_have(rows, tmp_path):
    run = execute(config(rows), tmp_path / "run")
    data = load_data(run.config.data, 0)
    assert (data.asks, data.mean, data.samples.scale) == (True, (), None)
    x = torch.cat([part.stored for part in (*data.train, *data.valid)]).double()
    assert run.info["data"]["mean"] == pytest.approx(x.mean(0).tolist(), rel=1e-12)
    assert run.info["data"]["std"] == pytest.approx(x.std(0, correction=0).tolist(), rel=1e-9)
    counts = torch.cat([part.y for part in data.train]).bincount().tolist()
    weights = [sum(counts) / 2 / count for count in counts]
    assert run.info["survey"] == {
        "asked": 3, "answered": 3, "examples": 90, "targets": counts, "weights": pytest.approx(weights)
    }  # fmt: skip
    assert run.model.arch.objective.weights == tuple(weights)
    assert run.config.objective.weights == "balanced"
    note = run.info["notes"]["before the first round"]
    assert note.startswith("3 of 3 clients answered, with 90 samples; mean and deviation of 2 features are theirs;")
    assert f"objective.weights = {weights[0]:.4g}, {weights[1]:.4g}" in note
    kinds = {kind: size for _, kind, size in run.info["kinds"]}
    assert {"survey/ask@1", "survey/sums@1", "scale/hold@1", "scale/held@1"} < kinds.keys()
    asked = [row for row in run.ledger() if row["kind"].startswith("survey/")]
    assert {(row["round"], row["messages"]) for row in asked} == {(-2, 1)}
    assert run.bytes["down"] == sum(row["bytes"] for row in run.ledger() if row["direction"] == "down")


def test_training_is_that_with_the_numbers_given(rows, tmp_path):
    """The pooled statistics and the same weights written out give the same model to the byte: no server's samples are here."""
    asked = execute(config(rows), tmp_path / "asked")
    weights = list(asked.model.arch.objective.weights)
    given = execute(
        config(rows, **{"data.transforms": ["standardise"], "objective.weights": weights}), tmp_path / "given"
    )
    assert (tmp_path / "asked/model.safetensors").read_bytes() == (tmp_path / "given/model.safetensors").read_bytes()
    assert "survey" not in given.info
    assert not (tmp_path / "given/survey.msg").exists()


@pytest.mark.parametrize(
    "more", [{"fleet.wire": False}, pytest.param({"fleet.kind": "pool"}, marks=pytest.mark.slow)], ids=str
)
def test_wherever_clients_run(rows, tmp_path, more):
    runs = [execute(config(rows, **each), tmp_path / str(number)) for number, each in enumerate(({}, more))]
    assert len({(run.path / "model.safetensors").read_bytes() for run in runs}) == 1
    assert runs[0].info["survey"] == runs[1].info["survey"]


def test_who_does_not_answer_is_asked_again_and_then_left_out(rows, tmp_path, caplog):
    run, facts = told(lambda fleet: Away(fleet, {"bea"}, attempts=1), rows, tmp_path / "late")
    assert (facts["answered"], facts["examples"]) == (3, 90)
    kinds = [(row["client"], row["attempt"]) for row in run.ledger() if row["kind"] == "survey/sums@1"]
    assert kinds == [("ann", 0), ("cid", 0), ("bea", 1)]
    whole = run.info["data"]["mean"]
    assert whole == execute(config(rows), tmp_path / "plain").info["data"]["mean"]  # whatever the order of the answers
    run, facts = told(lambda fleet: Away(fleet, {"bea"}), rows, tmp_path / "never")
    assert (facts["asked"], facts["answered"], facts["examples"]) == (3, 2, 60)
    assert "2 of 3 clients answered" in run.info["notes"]["before the first round"]
    assert "1 of 3 clients were silent (bea: asleep)" in caplog.text
    data = load_data(run.config.data, 0)
    rest = torch.cat(
        [
            part.stored
            for id, *parts in zip(data.ids, data.train, data.valid, strict=True)
            for part in parts
            if id != "bea"
        ]
    )
    assert run.info["data"]["mean"] == pytest.approx(rest.double().mean(0).tolist(), rel=1e-12)
    assert {row["client"] for row in run.ledger() if row["kind"] == "scale/held@1"} == set(WHOSE)  # it has them, too
    with pytest.raises(Unanswered, match=r"no client said what was asked of its data .*ann: asleep"):
        told(lambda fleet: Away(fleet, set(WHOSE)), rows, tmp_path / "nobody")


def test_sums_that_cannot_be_are_left_out(rows, tmp_path):
    class Lies(Wrapper):
        def ask(self, task, send, at_least=1):
            answers = self.inner.ask(task, send, 0)
            if task.name != sums.name:
                return answers
            wrong = {"mean": torch.zeros(3).double()}
            return Answers(
                [replace(a, value=replace(a.value, **wrong)) if a.device.id == "ann" else a for a in answers]
            )

    _, facts = told(Lies, rows, tmp_path)
    assert (facts["answered"], facts["examples"]) == (2, 70)


@pytest.mark.parametrize(("t", "after"), [(-2, 1), (0, 0), (0, 2), (1, 1)])
def test_a_run_that_is_killed_ends_as_if_it_had_not_been(rows, tmp_path, t, after):
    """Killed in the survey, between it and the first update, and in the middle of rounds."""
    settings = config(rows)
    whole = loop(settings, run_context(settings), "run", Folder(tmp_path / "whole"))
    folder, made = Folder(tmp_path / "run"), run_context(settings)
    with pytest.raises(Killed):
        loop(settings, replace(made, fleet=Mortal(made.fleet, t, after=after)), "run", folder)
    file = folder.path / "survey.msg"
    assert file.exists() == (t >= 0)
    again = run_context(settings)
    outcome = loop(settings, again, "run", folder)
    assert bytes(encode(outcome.state)) == bytes(encode(whole.state))
    assert outcome.federation.mean == whole.federation.mean
    assert _kinds(folder) == _kinds(Folder(tmp_path / "whole"))  # what was booked before it was killed is kept, once
    assert file.read_bytes() == (tmp_path / "whole/survey.msg").read_bytes()


def _kinds(folder):
    ledger = Ledger()
    ledger.resume(folder.ledger_rows())
    return ledger.kinds


def test_a_resumed_run_says_what_is_missing(rows, tmp_path):
    execute(config(rows), tmp_path / "run")
    (tmp_path / "run/survey.msg").unlink()
    with pytest.raises(ConfigError, match=r"survey\.msg is damaged: .*No such file.*; bring back a copy"):
        execute(config(rows), tmp_path / "run", resume=True)


def test_a_recorded_run_can_be_replayed_without_its_clients(rows, tmp_path):
    settings = config(rows, **{"fleet.record": True})
    run = execute(settings, tmp_path / "run")
    made = run_context(settings)
    made.fleet = Replayed(made.fleet.devices, run.path / "answers")
    outcome = loop(settings, made, run.info["id"])
    assert outcome.state.model.arch.objective == run.model.arch.objective
    weights = outcome.state.model.weights
    assert all(torch.equal(weights[name], value) for name, value in run.model.weights.items())


def test_with_a_clock_the_survey_takes_time(rows, tmp_path):
    run = execute(config(rows, **{"clock.devices": "raspberry-pi-4"}), tmp_path / "run")
    asked = [row for row in run.costs() if row["round"] == -2]
    assert {row["client"] for row in asked} == {"", *WHOSE}
    assert all(row["up_seconds"] > 0 for row in asked if row["client"])
    assert run.metrics[0]["simulated_seconds"] > run.metrics[0]["round_seconds"]


def test_of_the_servers_own_samples(rows):
    def of(**more):
        return load_data(
            DataConfig(path=str(rows), client="who", x=("a", "b"), transforms=({"standardise": "server"},), **more), 0
        )

    held = of(server=12)
    own = held.server.stored.double()
    assert len(own) == 12
    assert held.mean == pytest.approx(own.mean(0).tolist(), rel=1e-12)
    assert held.std == pytest.approx(own.std(0, correction=0).tolist(), rel=1e-9)
    with pytest.raises(ConfigError, match=r"the server has no samples of its own; set data\.server"):
        of()


def test_tokens_have_no_mean(tmp_path):
    np.savez(tmp_path / "train.npz", x=np.arange(40).reshape(20, 2) % 7, y=np.arange(20) % 2)
    transforms = ({"tokens": 7}, {"standardise": "clients"})
    with pytest.raises(ConfigError, match="inputs are tokens, which have no mean"):
        load_data(
            DataConfig(path=str(tmp_path / "train.npz"), transforms=transforms, partition="iid", clients=2, minimum=1),
            0,
        )


def test_an_exported_model_knows_what_the_clients_said(rows, tmp_path):
    run = load(execute(config(rows), tmp_path / "run").path)
    notes = Trained.of(run).notes()
    assert [round(float(each), 2) for each in notes["mean"].strip("[]").split(",")] == [
        round(each, 2) for each in run.info["data"]["mean"]
    ]
    assert f'"weights": [{run.model.arch.objective.weights[0]!r}' in notes["objective"]


def test_what_is_said_of_a_base_and_of_a_scale_are_kept_apart(rows, tmp_path):
    run = execute(config(rows, **{"model.trainable": ["classifier.*"]}), tmp_path / "run")
    kinds = {(way, kind) for way, kind, _ in run.info["kinds"]}
    assert {("down", "base/hold@1"), ("down", "scale/hold@1"), ("up", "base/held@1"), ("up", "scale/held@1")} < kinds
    rows = [row for row in run.ledger() if row["kind"] in ("base/hold@1", "scale/hold@1")]
    assert [row["messages"] for row in rows] == [1] * 6
