"""Long work says how far it is: when, to whom, and never to the harm of what is computed."""

import contextvars
import io
import itertools
from threading import Thread

import pytest
import torch

from fedbonsai import telling
from fedbonsai.errors import Silent
from fedbonsai.runs.shown import Screen, shown
from fedbonsai.telling import Teller, doing, each, listening


class Clock:
    """Seconds that pass when they are told to."""

    def __init__(self):
        self.now = 100.0

    def __call__(self):
        return self.now


def heard(clock):
    """A teller and what it was told: text, seconds, seconds left."""
    said = []
    return Teller(lambda now: said.append((now.text, now.seconds, now.left)), clock), said


def test_nobody_hears_of_short_work_and_of_long_work_four_times_a_second_at_most():
    clock = Clock()
    teller, said = heard(clock)
    with listening(teller):
        for _ in each("steps", range(40)):
            clock.now += 0.125
    assert [text for text, _, _ in said] == [f"steps {done}/40" for done in range(16, 40, 2)]
    assert said[0][1:] == (2.0, 3.0)


def test_work_inside_work_is_told_with_it_and_ends_with_it():
    clock = Clock()
    teller, said = heard(clock)
    with listening(teller), doing("rounds", 3) as at:
        at(1)
        clock.now += 5
        with doing("initial pruning", 1000) as inner:
            clock.now += 10
            inner(250)
        clock.now += 1
        at(2)
    assert [text for text, _, _ in said] == [
        "rounds 1/3, initial pruning 0/1,000",
        "rounds 1/3, initial pruning 250/1,000",
        "rounds 2/3",
    ]
    assert said[1][1:] == pytest.approx((10.0, 30.0))
    assert teller.now() is None


def test_what_is_not_countable_has_no_end_in_sight():
    clock = Clock()
    teller, _ = heard(clock)
    with listening(teller), doing("writing model.onnx"):
        clock.now += 3
        now = teller.now()
        assert (now.text, now.total) == ("writing model.onnx", 0)
        assert now.left != now.left


def test_answers_that_are_left_unread_leave_nothing_behind():
    teller = Teller(clock=Clock())
    with listening(teller):
        answers = each("devices", range(5))
        next(answers)
        with doing("averaging"):
            answers.close()  # ends after what began later
            assert [part.what for part in teller._parts] == ["averaging"]
    assert not teller._parts


def test_items_and_errors_are_those_of_the_work():
    with listening(Teller(clock=Clock())):
        assert list(each("some", (letter for letter in "abc"), 3)) == ["a", "b", "c"]
        assert list(each("rest", range(5), first=3)) == [3, 4]
        with pytest.raises(ZeroDivisionError), doing("dividing"):
            1 / 0  # noqa: B018
    assert list(each("nobody listens", [1, 2])) == [1, 2]


def test_what_the_listener_raises_is_no_trouble_of_a_client():
    clock = Clock()

    def stop(now):
        raise RuntimeError(f"enough at {now.done:g}")

    def task():
        try:
            for _ in each("steps", range(9)):
                clock.now += 1.5
        except Exception as error:
            raise Silent("this client has a fault") from error

    def devices():
        for _ in each("devices", range(2)):
            with pytest.raises(Silent):
                task()

    with pytest.raises(RuntimeError, match="enough at 2"), listening(Teller(stop, clock)):
        devices()
    with pytest.raises(RuntimeError, match="enough at 2"), listening(Teller(stop, clock)), pytest.raises(Silent):
        task()  # the last thing that is done


def test_another_thread_and_another_context_hear_nothing():
    teller, said = heard(clock := Clock())
    with listening(teller):
        clock.now += 10
        thread = Thread(target=lambda: list(each("elsewhere", range(3))))
        thread.start()
        thread.join()
        contextvars.Context().run(lambda: list(each("elsewhere", range(3))))
    assert not said


# --- the screen ----------------------------------------------------------------------------------------------------


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_logs_stay_small():
    clock, stream = Clock(), io.StringIO()
    screen = Screen(stream, clock)
    with listening(screen.teller):
        for phase in ("reading photos", "before the first round"):
            with doing(phase, 60) as at:
                for second in range(60):
                    at(second)
                    screen.tick()
                    clock.now += 1
    # after two seconds, then every ten
    times = [2, 12, 22, 32, 42, 52]
    assert stream.getvalue().splitlines() == [
        f"{phase} {t}/60: 0:{t:02d}, about {'1:00' if 60 - t == 60 else f'0:{60 - t:02d}'} left"
        for phase in ("reading photos", "before the first round")
        for t in times
    ]


def test_lines_of_rounds_break_the_silence_too():
    clock, stream = Clock(), io.StringIO()
    screen = Screen(stream, clock)
    with listening(screen.teller):
        for _ in each("rounds", range(20)):
            for _ in range(3):
                clock.now += 1
                screen.tick()
            screen.said()  # the line of a round
    assert len(stream.getvalue().splitlines()) == 1  # the first round's


def test_a_terminal_shows_one_line_in_its_place_and_takes_it_away():
    clock, stream = Clock(), Terminal()
    screen = Screen(stream, clock)
    with listening(screen.teller), doing("initial pruning", 1000) as at:
        screen.tick()
        assert not stream.getvalue()
        clock.now += 61
        at(100)
        screen.tick()
        assert "initial pruning 100/1,000: 1:01, about 9:09 left" in stream.getvalue()
    screen.tick()
    assert "\x1b[2K" in stream.getvalue()  # the line is erased
    seen = stream.getvalue()
    screen.tick()
    assert stream.getvalue() == seen


def test_a_notebook_shows_one_line_over_the_one_before_and_takes_it_away():
    clock, stream = Clock(), type("OutStream", (io.StringIO,), {"__module__": "ipykernel.iostream"})()
    screen = Screen(stream, clock)
    with listening(screen.teller), doing("initial pruning", 10) as at:
        for second in range(5):
            at(second)
            for _ in range(4):
                screen.tick()
                clock.now += 0.25
    screen.close()
    shown = stream.getvalue()
    assert "\n" not in shown
    lines = [line.rstrip() for line in shown.split("\r")]
    assert lines == ["", *(f"initial pruning {t}/10: 0:0{t}, about 0:0{10 - t} left" for t in (2, 3, 4)), "", ""]
    screen.close()
    assert stream.getvalue() == shown


def test_a_screen_that_another_draws_writes_nothing():
    clock, stream = Clock(), io.StringIO()
    screen = Screen(stream, clock)
    screen.drawn = True
    with listening(screen.teller), doing("rounds"):
        clock.now += 60
        screen.tick()
        assert screen.line() == "rounds: 1:00"
    assert not stream.getvalue()


def test_a_function_is_called_and_false_is_silent(capsys, monkeypatch):
    monkeypatch.setattr(telling.time, "monotonic", itertools.count().__next__)  # each look takes a second
    said = []
    monkeypatch.setattr(Teller.__init__, "__defaults__", (None, telling.time.monotonic, telling.EVERY))
    with shown(said.append):
        list(each("steps", range(30)))
    assert said[-1].what == "steps"
    assert said[-1].total == 30
    with shown(False):
        list(each("steps", range(30)))
    assert capsys.readouterr() == ("", "")


# --- who says it ---------------------------------------------------------------------------------------------------


@pytest.fixture
def everything(monkeypatch):
    """Texts of all that is told, at a clock at which everything takes long."""
    ticks, said = itertools.count(0, 10), []
    teller = Teller(lambda now: said.append(now.text), lambda: float(next(ticks)))
    with listening(teller):
        yield said


def test_initial_pruning_candidates_and_pretraining_say_how_far_they_are(everything):
    from fedbonsai.arch import Arch
    from fedbonsai.core import Client, Samples
    from fedbonsai.methods.fl_pqsu.one_shot import pretrain
    from fedbonsai.methods.prunefl.initial_prune import InitialPrune, InitialPruneConfig, initial_prune
    from fedbonsai.model import Model
    from fedbonsai.stages.pruning.criteria import Budget, Grounds, SynFlow
    from fedbonsai.stages.pruning.time_model import Seconds
    from fedbonsai.training.optimizers import SGD

    data = Samples(torch.zeros(30, 1, 8, 8), torch.arange(30) % 10)
    me, model = Client("a", 1, data, data[:0]), Model.init(Arch("mlp", {"size": 8}), 0)
    pretrain(model, me, SGD(batch=10), 2, "pretrain")
    assert everything[-1] == "pretrain on the server, step 6/6"
    names = [name for name, value in model.weights.items() if value.dim() == 2]
    seconds = Seconds(0.0, 0.0, 0.0, dict.fromkeys(names, 1e-9), 1)
    how = InitialPruneConfig(iterations=7)
    initial_prune.run(InitialPrune(model, SGD(batch=10), how, seconds, True, 10**6), me, {})
    assert "initial pruning 6/7" in everything
    masks = {name: torch.ones_like(model.weights[name], dtype=torch.bool) for name in names}
    SynFlow(5).prune(Grounds(model, names, lambda now: {}, 0, (1, 8, 8)), masks, Budget(100, "global", 0.1))
    assert everything[-1] == "scoring weights 4/5"


def test_what_comes_before_the_first_round_is_part_of_the_estimate():
    from fedbonsai.core import Client, Samples
    from fedbonsai.runs import recipes

    def of(recipe, count, **settings):
        data = Samples(torch.zeros(count, 1, 8, 8), torch.zeros(count, dtype=torch.int64))
        people = [Client(str(k), 0, data, data[: count // 4]) for k in range(3)]
        method = recipes.load(recipe, overrides={f"method.{name}": value for name, value in settings.items()}).method
        return method.samples_before(people, people[0], 2)

    scout = {"scouting.iterations": 20, "scouting.batches": 4, "optimizer.batch": 8}
    assert of("prunefl", 100, **scout) == 20 * 4 * 8
    assert of("prunefl", 10, **scout) == 20 * 10  # it has fewer samples than that
    # two passes forward, a step being three; three devices of 25, two of them at a time
    assert of("fedtiny", 100, **{"selection.pool": 6}) == pytest.approx(2 / 3 * 6 * 75 / 2)
    assert of("fedtiny", 100, **{"selection.by": "none"}) == 0
    assert of("fl-pqsu", 100, pretrain=7, finetune=2) == 900
    assert of("synflow", 100) == 0
    assert of("snip", 100) == 0  # a round of the devices


@pytest.mark.slow
def test_a_run_from_python_calls_a_function_or_is_silent(tmp_path, capfd, monkeypatch):
    import fedbonsai

    ticks, said = itertools.count(0, 10), []
    monkeypatch.setattr(Teller.__init__, "__defaults__", (None, lambda: float(next(ticks)), telling.EVERY))
    quick = {"runs": tmp_path, "rounds": 1, "data__clients": 3, "data__limit": 100, "model__name": "mlp"}
    fedbonsai.run("fedavg", name="told", progress=said.append, **quick)
    assert {"before the first round", "devices", "testing on 397 samples"} <= {now.what for now in said}
    assert {now.phase for now in said} >= {"before the first round", "rounds"}
    fedbonsai.run("fedavg", name="silent", progress=False, **quick)
    assert capfd.readouterr() == ("", "")

    def enough(now):
        if now.phase == "rounds":
            raise LookupError(now.text)

    with pytest.raises(LookupError, match="rounds 0/1"):
        fedbonsai.run("fedavg", name="ended", progress=enough, **quick)


@pytest.mark.slow
@pytest.mark.parametrize("quiet", [True, False])
def test_a_run_of_the_command_line_breaks_silences_unless_it_is_quiet(tmp_path, monkeypatch, capsys, quiet):
    from fedbonsai.cli import main
    from fedbonsai.runs import shown as module

    class Eager(Screen):
        """Looked at whenever work moves on, with a second between."""

        def __init__(self):
            ticks = itertools.count(0, 1)
            super().__init__(clock=lambda: float(next(ticks)))
            told, self.teller.told = self.teller.told, lambda: (told(), self.tick())

    monkeypatch.setattr(module, "Screen", Eager)
    monkeypatch.setattr(module, "LOOK", 3600.0)  # no second thread looks
    words = ["--rounds", "2", "--data.clients", "4", "--data.limit", "200", "--method.scouting.iterations", "30"]
    assert main(["run", "prunefl", *words, "--runs", str(tmp_path), *["--quiet"][: int(quiet)]]) == 0
    said = capsys.readouterr()
    lines = [line for line in said.err.splitlines() if "initial pruning" in line]
    assert bool(lines) != quiet
    if not quiet:
        assert lines[0].startswith("before the first round, devices 0/1, initial pruning ")
        assert "left" in lines[-1]
        assert "with what comes before them" in said.out
        assert said.out.index("estimate") < said.out.index("round 1/2")


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["local", "pool"])
def test_a_whole_run_says_what_it_does_and_computes_the_same(tmp_path, everything, kind):
    from fedbonsai.runs import recipes
    from fedbonsai.runs.run import execute

    quick = {"rounds": 2, "data.clients": 3, "data.limit": 100, "fleet.kind": kind, "method.optimizer.epochs": 1}
    quick |= {"method.density": 0.05, "data.partition": "iid", "evaluate_every": 2}
    config = recipes.load("fedtiny", overrides=quick)
    told = execute(config, tmp_path / "told")
    for text in (
        "dividing 1,400 samples among the clients",
        "before the first round, devices 2/3",
        "rounds 1/2, devices 2/3",
        "rounds 1/2, testing on 397 samples",
        "rounds 1/2, testing on the clients' validation parts",
    ):
        assert text in everything
    assert any("judging candidates 3/4" in text for text in everything) == (kind == "local")
    silent = contextvars.Context().run(execute, config, tmp_path / "silent")  # nobody listens there
    assert (tmp_path / "told/model.safetensors").read_bytes() == (tmp_path / "silent/model.safetensors").read_bytes()
    assert told.bytes == silent.bytes
