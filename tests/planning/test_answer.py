"""What a plan says, by hand: the rounds that all runs bear, the choice by validation, the front, the sentence, the recipe."""

import tomllib
from dataclasses import replace

import pytest

from fedbonsai.planning.answer import Answer
from fedbonsai.planning.finals import Finalist, best, finalists
from fedbonsai.planning.journal import Journal
from fedbonsai.planning.limits import Limits
from fedbonsai.planning.page import page
from fedbonsai.planning.question import Aim, Question, shared
from fedbonsai.planning.search import Search, directions
from fedbonsai.planning.standing import Standing
from tests.browser import figures_of
from tests.planning.table import ROUNDS, SPACE, Lookup, question


def runs(*values, tests=(), each=10.0, **more):
    """A run that ended, of a price a round."""
    grown = tuple(each * (t + 1) for t in range(len(values)))
    return Standing(values=values, tests=tuple(tests) or values, bytes=grown, ended=True, **more)


@pytest.fixture
def done(tmp_path):
    base = shared({"data.limit": "300"})
    asked = replace(question(bytes=500), base=base)
    found = Search(asked, Journal(tmp_path, SPACE, directions(asked), 0), Lookup(asked.limits), 18, lambda text: None)
    found.run()
    return found


def finalist(done, place=0, **of_seeds):
    candidate = done.feasible()[place]
    return Finalist(candidate, candidate.length, {int(seed[1:]): run for seed, run in of_seeds.items()})


def test_rounds_are_those_that_all_runs_bear_within_the_limits(done):
    asked = question(bytes=50)
    one = finalist(done, s1=runs(0.1, 0.2, 0.3, 0.4, 0.5, 0.6), s2=runs(0.1, 0.2, 0.3, each=15.0))
    one.candidate.standing = runs(0.1, 0.2, 0.3, 0.4)
    assert one.kept(asked) == 3, "45 bytes with the dearer seed"
    assert one.valid(asked).mean == pytest.approx(0.3)
    assert one.costs(asked)["bytes"] == 45
    one.candidate.standing = replace(runs(0.1), ended=False)  # the search left it behind after a round
    assert one.kept(asked) == 3


def test_with_a_target_rounds_are_the_most_that_it_took_to_reach_it(done):
    asked = question(Aim(target=0.3))
    one = finalist(done, s1=runs(0.1, 0.3, 0.4), s2=runs(0.1, 0.2, 0.3))
    one.candidate.standing = runs(0.3)
    assert one.kept(asked) == 3
    assert [one.at(asked, run) for run in one.runs.values()] == [2, 3]


def test_the_choice_is_by_validation_and_never_by_the_test_set(done):
    asked = question()
    good = finalist(done, 0, s1=runs(0.9, tests=[0.1]), s2=runs(0.8, tests=[0.1]))
    other = finalist(done, 1, s1=runs(0.7, tests=[0.99]), s2=runs(0.7, tests=[0.99]))
    for each in (good, other):
        each.candidate.standing = runs(0.5)
    assert best([other, good], asked) is good
    answer = Answer(replace(done.question, limits=Limits()), done, [other, good])
    assert "accuracy 10.00 % ± 0.00 % on the test set (2 seeds)" in answer.sentence()
    assert "by 15.00 ± 63.53 better than" in answer.sentence(), "Student's t of two differences, 0.2 and 0.1"
    assert "not beyond the interval" in answer.sentence()


def test_with_a_target_the_choice_is_by_cost_among_those_that_reach_it(done):
    asked = question(Aim(target=0.5))
    dear = finalist(done, 0, s1=runs(0.9, each=20.0))
    cheap = finalist(done, 1, s1=runs(0.5, each=10.0))
    short = finalist(done, 2, s1=runs(0.4, each=1.0))
    for each in (dear, cheap, short):
        each.candidate.standing = runs(0.9)
    assert best([dear, cheap, short], asked) is cheap


def test_the_front_has_who_nobody_beats_in_measure_and_bytes_and_all_finalists(done):
    finals = finalists(done.feasible(), done.question, 2)
    answer = Answer(done.question, done, finals)
    whole = [each for each in done.feasible() if each.whole]
    numbers = {each.number for each in answer.front()}
    for each in whole:
        rounds = done.counted(each)
        beaten = any(
            other.standing.value(done.counted(other)) >= each.standing.value(rounds)
            and other.standing.bytes[done.counted(other) - 1] <= each.standing.bytes[rounds - 1]
            for other in whole
            if other is not each
        )
        assert (each.number in numbers) == (not beaten or each in [final.candidate for final in finals])
    assert "(1 run)" in answer.markdown()
    assert "no time was left" in answer.sentence()


def test_the_recipe_has_neither_clock_nor_target_and_no_more_rounds_than_the_limit_bears(done):
    base = shared({"data.limit": "300", "clock.devices": "raspberry-pi-4"})
    asked = Question(base, Limits(bytes=50), Aim(), SPACE, ROUNDS, done.question.objective)
    one = finalist(done, s1=runs(*[0.1] * 6), s2=runs(*[0.1] * 6, each=15.0))
    one.candidate.standing = runs(*[0.1] * 6)
    done.question = asked
    text = Answer(asked, done, [one]).recipe()
    table = tomllib.loads(text)
    assert text.startswith("# Take ")
    assert table["rounds"] == 3
    assert table["clock"]["devices"] == ""
    assert table["target"] == 0
    assert table["budget"]["device_bytes"] == 50
    assert table["data"]["limit"] == 300
    assert table["seed"] == 0
    one.candidate.standing, one.candidate.rung = replace(runs(0.1), ended=False), 0
    assert tomllib.loads(Answer(asked, done, [one]).recipe())["seed"] == 1, "the search left it behind after a round"
    labels = one.candidate.asked.labels
    assert table["method"]["optimizer"]["lr"] == float(labels["lr"])


@pytest.mark.slow
@pytest.mark.parametrize(("width", "scheme"), [(1280, "light"), (390, "dark")])
def test_the_page_in_a_browser(done, tmp_path, width, scheme):
    held = [finalist(done, place, s1=(run := done.feasible()[place].standing), s2=run) for place in range(2)]
    file = tmp_path / "plan.html"
    file.write_text(page(Answer(done.question, done, held)))
    assert figures_of(file, width, scheme) == 3
    assert file.read_text().count("<tr>") > len(done.candidates)
