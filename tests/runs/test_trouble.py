"""Clients' trouble: one that fails is silent and told of; a run that learns nothing fails."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tests.cases import CASES
from tests.conformance import stage
from tests.fleets import tasks
from tests.fleets.tasks import Question, clients
from tests.runs import nets as _nets  # noqa: F401 - registers a network

from fedbonsai.arch import Arch
from fedbonsai.cli import main
from fedbonsai.core import Answers, Device, Scope, Silence, scope
from fedbonsai.errors import NothingLearned, TaskFailed, Unanswered, exit_code
from fedbonsai.fleets import local
from fedbonsai.fleets.counted import LONGEST, Counted, trained
from fedbonsai.fleets.envelope import blamed
from fedbonsai.fleets.local import LocalFleet
from fedbonsai.fleets.wrappers import Wrapper
from fedbonsai.reports.series import cautions, together
from fedbonsai.runs import recipes
from fedbonsai.runs.loop import loop
from fedbonsai.runs.run import execute, load
from fedbonsai.runs.setup import federation, run_context
from fedbonsai.runs.trouble import fruitless, of_round, of_run
from fedbonsai.training.evaluate import evaluate
from fedbonsai.work import Episode

QUICK = {
    "rounds": 3,
    "retries": 1,
    "data.clients": 3,
    "data.limit": 90,
    "data.partition": "iid",
    "model.name": "mlp",
    "method.optimizer.epochs": 1,
}


def quick(**more):
    return recipes.load("fedavg", overrides={**QUICK, **more})


def uneven(tmp_path, small):
    """A split in which these clients have two samples only."""
    split = federation(quick()).split
    train = tuple(part[:2] if i in small else part for i, part in enumerate(split.train))
    replace(split, train=train).save(tmp_path / "split.json")
    return {"data.split": str(tmp_path / "split.json"), "data.minimum": 1, "model.name": "test-choosy"}


class Away(Wrapper):
    """Nobody answers in some rounds."""

    def __init__(self, inner, rounds):
        super().__init__(inner)
        self.rounds = rounds

    def ask(self, task, send, at_least=1):
        here, _ = self.where()
        if here.round in self.rounds:
            return Answers((Silence(device, f"away in round {here.round}") for device in send), at_least)
        return super().ask(task, send, at_least)


def away(rounds):
    def build(config, split=None, answers=None):
        made = run_context(config, split, answers)
        made.fleet = Away(made.fleet, rounds)
        return made

    return build


@pytest.mark.slow
def test_a_client_that_cannot_train_does_not_end_the_run_and_is_told_of(tmp_path, capsys):
    settings = uneven(tmp_path, {1})
    first = execute(quick(**settings), tmp_path / "local")
    assert first.info["status"] == "finished"
    told = {"reason": "ValueError: a batch of 2, at least 3 needed", "clients": 1, "client": "001"}
    for row in first.metrics:
        assert (row["answered"], row["silent"], row["rejected"], row["reasons"]) == (2, 1, 0, [told])
    assert of_round(first.metrics[0]) == "1 silent (001: ValueError: a batch of 2, at least 3 needed)"
    (note,) = cautions(together([first]))
    assert note.startswith("local: clients silent in 3 of 3 rounds, up to 1 in one; 001: ValueError: a batch of 2")
    pool = execute(quick(**settings, **{"fleet.kind": "pool"}), tmp_path / "pool")
    assert [{**row, "seconds": 0} for row in pool.metrics] == [{**row, "seconds": 0} for row in first.metrics]
    assert pool.ledger() == first.ledger()
    # on the screen, in each round and with --quiet at the end
    words = [str(word) for name, value in (QUICK | settings).items() for word in (f"--{name}", value)]
    assert main(["run", "fedavg", *words, "--name", "a", "--runs", str(tmp_path)]) == 0
    assert capsys.readouterr().out.count("1 silent (001: ValueError") == 3
    assert main(["run", "fedavg", *words, "--name", "b", "--runs", str(tmp_path), "--quiet"]) == 0
    assert "001: ValueError: a batch of 2, at least 3 needed (in 3 rounds)" in capsys.readouterr().out


def test_a_network_that_fails_on_all_clients_is_wrong_input_at_once(tmp_path, capsys):
    # the rehearsal takes the smallest batch, the rest of ten
    settings = {"model.name": "test-sated", "method.optimizer.batch": 10, "data.valid": 0.0, "data.limit": 96}
    words = [str(word) for name, value in (QUICK | settings).items() for word in (f"--{name}", value)]
    assert main(["run", "fedavg", *words, "--name", "a", "--runs", str(tmp_path)]) == 2
    said = capsys.readouterr().err
    assert "Traceback" in said
    assert said.splitlines()[-1].startswith("fedbonsai: task 'averaging/train' fails alike on all 3 clients")
    run = load(tmp_path / "a")
    assert (run.info["status"], run.metrics) == ("failed", [])
    assert "ValueError: a batch of 10, at most 6 taken" in run.info["reason"]
    with pytest.raises(TaskFailed):
        execute(quick(**settings), tmp_path / "b")


HARD = ["prunefl", "fedtiny", "sparse-collaborative", "sparse-collaborative-split-2", "wireless-pruning", "lotteryfl"]


@pytest.mark.slow
@pytest.mark.parametrize("case", [case for case in CASES if str(case) in HARD], ids=str)
def test_whatever_a_method_asks_one_client_may_fail_at_all_of_it_and_not_all_may(case, monkeypatch):
    bad = {"000"}

    def perform(task, request, me, *more):
        with blamed():
            if me.id in bad:
                raise ArithmeticError(f"client {me.id} has {len(me.train)} samples")
        return real(task, request, me, *more)

    real = local.perform
    monkeypatch.setattr(local, "perform", perform)
    outcome = loop(case.config(), stage(case), "run")
    assert outcome.futile == ""
    assert all(row["answered"] and not row["skipped"] for row in outcome.rows)
    assert all(row["reasons"][0]["client"] == "000" for row in outcome.rows)
    bad |= {"001", "002", "003"}
    with pytest.raises(TaskFailed, match=r"on client 00\d: ArithmeticError: client 00\d has \d+ samples;"):
        loop(case.config(), stage(case), "run")


def test_rounds_without_an_update_end_a_run_which_goes_on_after_them(tmp_path):
    config = quick(rounds=7, fruitless=2)
    with pytest.raises(
        NothingLearned, match=r"2 rounds in a row .* round 3 of 7\): 3 silent, such as 000: away in ro"
    ) as caught:
        execute(config, tmp_path / "a", build=away({1, 2, 3, 4}))
    assert str(caught.value).endswith(
        f"fedbonsai run --resume {tmp_path / 'a'}; otherwise begin anew under another --name"
    )
    assert (exit_code(caught.value), isinstance(caught.value, Unanswered)) == (3, True)
    held = load(tmp_path / "a")
    assert [row["skipped"] for row in held.metrics] == [False, True, True]
    assert (
        evaluate(held.model, run_context(config).federation.test).accuracy == held.accuracy
    )  # of the round with an update
    with pytest.raises(NothingLearned, match="round 5"):  # still away: counted anew
        execute(config, tmp_path / "a", True, build=away({1, 2, 3, 4}))
    assert load(tmp_path / "a").info["status"] == "failed"
    run = execute(config, tmp_path / "a", True, build=away(set()))
    assert [row["skipped"] for row in run.metrics] == [False, True, True, True, True, False, False]
    assert run.info["status"] == "finished"
    assert of_run(run.metrics)[0] == "4 of 7 rounds brought no update"


def test_a_run_that_ends_early_has_an_evaluated_round_and_a_report(tmp_path, capsys):
    config = quick(rounds=9, fruitless=2, evaluate_every=5)
    with pytest.raises(NothingLearned):
        execute(config, tmp_path / "a", build=away({1, 2, 3}))
    assert ["accuracy" in row for row in load(tmp_path / "a").metrics] == [False, False, True]
    assert main(["report", str(tmp_path / "a"), "--out", str(tmp_path / "r.csv")]) == 0
    with pytest.raises(NothingLearned):  # resumed, rounds are counted anew: there is no end after the first
        execute(config, tmp_path / "a", True, build=away(set(range(9))))
    assert ["accuracy" in row for row in load(tmp_path / "a").metrics] == [False, False, True, False, True]


class Forgetful(Away):
    """In some rounds all devices say that they lost what they held."""

    def ask(self, task, send, at_least=1):
        here, _ = self.where()
        if here.round in self.rounds:
            return Answers((Silence(device, "memory is gone", forgot=True) for device in send), at_least)
        return Wrapper.ask(self, task, send, at_least)


@pytest.mark.parametrize("name", ["averaging", "sparse-collaborative", "wireless-pruning", "fl-pqsu", "prunefl"])
def test_a_round_without_an_update_shows_no_figures_of_the_round_before(name):
    case = next(case for case in CASES if case.recipe == {"averaging": "fedavg"}.get(name, name))
    scene = stage(case)
    scene.fleet = Forgetful(scene.fleet, {1})
    outcome = loop(replace(case.config(), rounds=3), scene, "run")
    rows, own = outcome.rows, set(scene.method.metrics(outcome.state))
    assert [row["answered"] == 0 for row in rows] == [False, True, False]
    assert "train_loss" in rows[0]
    assert not rows[1].keys() & own
    assert rows[1].keys() <= rows[2].keys() | {"reasons"}


def test_an_update_between_them_is_no_end_and_0_has_no_limit(tmp_path):
    run = execute(quick(rounds=5, fruitless=3), tmp_path / "a", build=away({0, 1, 3, 4}))
    assert run.info["status"] == "finished"
    run = execute(quick(rounds=5, fruitless=0), tmp_path / "b", build=away({0, 1, 2, 3}))
    assert run.info["status"] == "finished"


def test_a_run_that_ends_with_as_many_of_them_failed_and_has_nothing_left(tmp_path):
    for resume in (False, True):
        with pytest.raises(NothingLearned, match=r"2 rounds in a row .*Mend that; begin anew under another --name$"):
            execute(quick(rounds=3, fruitless=2), tmp_path / "a", resume, build=away({1, 2}))
        assert load(tmp_path / "a").info["status"] == "failed"


@pytest.mark.parametrize("limit", [0, 9])
def test_a_run_whose_every_round_was_skipped_never_finishes(tmp_path, limit):
    config = quick(rounds=2, retries=0, fruitless=limit)
    for resume in (False, True):
        with pytest.raises(NothingLearned, match="none of 2 rounds brought an update"):
            execute(config, tmp_path / "a", resume, build=away({0, 1}))
        assert load(tmp_path / "a").info["status"] == "failed"


def test_answers_that_cannot_be_used_are_a_reason_too(tmp_path):
    class Spoilt(Wrapper):
        def ask(self, task, send, at_least=1):
            answers = super().ask(task, send, 0)
            spoilt = (replace(a, value=replace(a.value, result={})) for a in answers)
            return Answers(spoilt, at_least)

    def build(config, split=None, answers=None):
        made = run_context(config, split, answers)
        made.fleet = Spoilt(made.fleet)
        return made

    with pytest.raises(
        NothingLearned, match="3 rejected, such as 000: its answer does not fit what was asked, or is not finite"
    ):
        execute(quick(rounds=2), tmp_path / "a", build=build)
    assert [(r["answered"], r["silent"], r["rejected"]) for r in load(tmp_path / "a").metrics] == [(0, 0, 3)] * 2


def test_a_round_in_which_no_answer_was_used_brought_no_update():
    assert fruitless({"skipped": True, "answered": 2})
    assert fruitless({"skipped": False, "answered": 0})
    assert not fruitless({"skipped": False, "answered": 1})
    assert not fruitless({"skipped": False})  # nobody was asked: a method without clients


def test_who_is_silent_is_counted_once_and_reasons_by_their_kind():
    fleet = Counted(LocalFleet(clients(9)))
    ways = {"00": "wrong", "01": "wrong", "02": "other", "03": "place", "08": "place"}
    say = {device: Question(torch.zeros(1), ways.get(device.id, "")) for device in fleet.devices}
    for attempt in range(2):
        with scope(fleet, Scope("r", 1, 0, attempt)):
            for answer in fleet.ask(tasks.stumble, say):
                if answer.device.id == "05":
                    fleet.reject(answer.device)
            fleet.reject(Device("00"))
    found = fleet.take()
    assert (found["answered"], found["silent"], found["rejected"]) == (3, 5, 1)
    assert [(each["clients"], each["client"]) for each in found["reasons"]] == [(2, "00"), (1, "02"), (2, "03")]
    assert max(len(each["reason"]) for each in found["reasons"]) <= LONGEST
    assert fleet.take() == {"silent": 0, "rejected": 0}


def test_samples_count_as_trained_where_a_step_was_made_and_before_a_cut():
    arch = Arch("mlp", {})
    whole = Episode(arch, {}, (1, 8, 8), backward=30, steps=3)
    looked = Episode(arch, {}, (1, 8, 8), backward=10, forward=50)  # gradients for a choice, and evaluation
    back = Episode(arch, {}, (16,), backward=30, steps=3, inward=True)
    assert trained((whole, looked, back)) == 30
    assert trained(()) == 0


@pytest.mark.slow
@pytest.mark.parametrize(
    ("recipe", "times"), [("fedavg", 1), ("fedtiny", 1), ("fedgkt", 1), ("sparse-collaborative", 2)]
)
def test_a_round_tells_how_many_samples_devices_trained_on(recipe, times, tmp_path):
    """All of a client's, in each epoch, for each of the networks that it is trained in; choosing what grows is no training."""
    case = next(case for case in CASES if case.recipe == recipe)
    config = case.config(**{"method.optimizer.epochs": 2, "rounds": 2})
    samples = sum(map(len, federation(config).train))
    run = execute(config, tmp_path / "a")
    assert [row["trained_examples"] for row in run.metrics] == [2 * times * samples] * 2


@pytest.mark.slow
def test_divergence_is_exit_code_3_with_the_reason_last_and_a_comparison_goes_on(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    words = [str(word) for name, value in QUICK.items() for word in (f"--{name}", value)]
    assert main(["run", "fedprox", *words, "--method.optimizer.lr", "1e30", "--name", "a", "--quiet"]) == 3
    out, err = capsys.readouterr()
    assert "accuracy" not in out
    assert err.splitlines()[-1].startswith("fedbonsai: none of 3 rounds brought an update")
    assert "not finite" in err.splitlines()[-1]
    assert main(["cp", "fedprox", "wild.toml"]) == 0
    wild = Path("wild.toml").read_text()
    Path("wild.toml").write_text(wild.replace("\nlr = ", "\nlr = 1e30 # "))
    assert main(["compare", "wild.toml", "fedavg", *words, "--workers", "1"]) == 3
    out, err = capsys.readouterr()
    assert "| fedavg | 1 |" in out
    assert "wild-0 failed and is left out: none of 3 rounds brought an update" in out
    assert "not finite" in err
    assert load("runs/comparison/fedavg-0").info["status"] == "finished"
    assert "wild-0 failed and is left out" in Path("runs/comparison/report.html").read_text()
