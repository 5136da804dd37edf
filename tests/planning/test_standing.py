"""Where runs stand, by hand: sums of the costliest device, rounds within limits, and which standing is better."""

from math import inf, nan

import pytest

from fedbonsai.errors import ConfigError
from fedbonsai.objectives import measure_named
from fedbonsai.planning.limits import Limits
from fedbonsai.planning.order import counted, order, reached
from fedbonsai.planning.question import Aim
from fedbonsai.planning.rungs import going_on, upto
from fedbonsai.planning.standing import Standing, _costliest

ACCURACY, RMSE = measure_named("accuracy"), measure_named("rmse")


def standing(*values, bytes=(), **more):
    return Standing(
        values=values, tests=values, bytes=tuple(bytes) or tuple(10.0 * (t + 1) for t in range(len(values))), **more
    )


def test_the_costliest_device_may_be_another_in_each_round_and_the_beginning_counts_with_the_first():
    # a: 5 before, 1 in round 0, 0, 9 in round 2; b: 8 in round 1
    rows = [(-1, "a", 5.0), (0, "a", 1.0), (1, "b", 8.0), (2, "a", 9.0), (3, "a", 100.0)]
    assert _costliest(rows, 3) == (6.0, 8.0, 15.0)
    assert _costliest([], 2) == (0.0, 0.0)


def test_rounds_within_the_limits_are_those_before_the_first_that_exceeds_one():
    held = standing(0.1, 0.2, 0.3, seconds=(1.0, 5.0, 6.0))
    assert held.within(Limits()) == 3
    assert held.within(Limits(bytes=20)) == 2
    assert held.within(Limits(bytes=20, seconds=4.9)) == 1
    assert held.within(Limits(bytes=9)) == 0
    assert held.value(2) == 0.2
    assert held.costs(2) == {"bytes": 20.0, "seconds": 5.0}


def test_of_rounds_without_a_measure_the_last_one_with_it_counts():
    held = standing(0.1, nan, nan)
    assert held.value(3) == 0.1
    assert held.first(1).rounds == 1
    assert Standing.of(held.plain()).bytes == held.bytes


def test_a_run_that_ended_did_not_end_after_fewer_rounds():
    held = standing(0.1, 0.2, ended=True)
    assert held.first(2).ended
    assert not held.first(1).ended


def test_limits_say_by_how_much_they_are_missed():
    limits = Limits.of({"bytes": "1kB", "latency": "2ms"})
    assert limits.missed({"bytes": 2500.0, "latency": 0.002, "joules": 7.0}) == {"bytes": 2.5}
    assert limits.timed == ["latency"]
    with pytest.raises(ConfigError) as told:
        Limits.of({"byte": "1kB", "joules": "much"})
    assert "limit.byte is not known; did you mean 'bytes'?" in str(told.value)
    assert "limit.joules = 'much': expected a number above 0" in str(told.value)


def test_the_best_is_best_by_the_measure_within_the_limits():
    some = {
        1: standing(0.5, 0.9),
        2: standing(0.6, 0.7),
        3: standing(0.95, bytes=[99.0]),
        4: standing(nan),
        5: standing(0.9, failed="no"),
    }
    assert order(some, Aim(), ACCURACY, Limits(bytes=20))[:2] == [1, 2]
    assert order(some, Aim(), ACCURACY, Limits(bytes=10))[:2] == [2, 1]
    assert order({1: standing(0.5, bytes=[9.0]), 2: standing(0.5, bytes=[8.0])}, Aim(), ACCURACY, Limits()) == [2, 1]
    errors = {1: standing(3.0), 2: standing(2.0)}
    assert order(errors, Aim(), RMSE, Limits()) == [2, 1]


def test_with_a_target_the_cheapest_that_reaches_it_is_best_and_of_the_others_the_nearest():
    some = {
        1: standing(0.5, 0.9, 0.9),  # reaches it with 20
        2: standing(0.9, bytes=[15.0]),
        3: standing(0.6, 0.7),
        4: standing(0.89),
    }
    aim = Aim(target=0.9)
    assert reached(some[1], aim, ACCURACY, Limits()) == 2
    assert counted(some[1], aim, ACCURACY, Limits()) == 2
    assert order(some, aim, ACCURACY, Limits()) == [2, 1, 4, 3]
    assert order(some, aim, ACCURACY, Limits(bytes=14)) == [4, 3, 1, 2]


def test_with_costs_to_lower_fronts_come_one_behind_the_other():
    some = {
        1: standing(0.9, bytes=[50.0]),
        2: standing(0.8, bytes=[10.0]),
        3: standing(0.7, bytes=[20.0]),  # dominated by 2
        4: standing(0.6, bytes=[30.0]),  # dominated by 2 and 3
    }
    assert order(some, Aim(lower=("bytes",)), ACCURACY, Limits()) == [1, 2, 3, 4]
    assert order({**some, 3: standing(0.85, bytes=[60.0])}, Aim(lower=("bytes",)), ACCURACY, Limits()) == [1, 2, 3, 4]
    assert order(some, Aim(lower=("joules",)), ACCURACY, Limits())[0] == 1, (
        "of a cost that was not counted nothing is known"
    )


@pytest.mark.parametrize(("length", "ends"), [(30, [4, 10, 30]), (9, [1, 3, 9]), (2, [1, 1, 2]), (1, [1, 1, 1])])
def test_rungs(length, ends):
    assert [upto(length, rung) for rung in range(3)] == ends


@pytest.mark.parametrize(("count", "left"), [(9, 3), (3, 1), (4, 2), (1, 1)])
def test_a_third_goes_on(count, left):
    assert going_on(count) == left


def test_no_limit_is_infinite():
    assert Limits().bytes == inf
    assert not Limits().set
