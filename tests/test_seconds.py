"""The table of seconds to an accuracy, by hand."""

from experiments.seconds_to_accuracy.table import reached, table


def run(name, seed, *rounds):
    return {"name": name, "seed": seed, "rounds": [[t, *row] for t, row in enumerate(rounds, 1)]}


ONE = run("a", 0, (1.0, 2.0, 0.5, 10_000_000, 20_000_000), (2.0, 4.0, 0.9, 20_000_000, 40_000_000))
TWO = run("a", 1, (3.0, 3.0, 0.7, 10_000_000, 20_000_000), (4.0, 4.0, 0.8, 20_000_000, 40_000_000))


def test_a_goal_is_met_in_the_first_round_that_reaches_it():
    assert reached(ONE, 0.5) == (1.0, 30.0)
    assert reached(ONE, 0.51) == (2.0, 60.0)
    assert reached(ONE, 0.95) is None


def test_means_are_over_the_seeds_that_met_the_goal_and_the_others_are_said():
    assert table([ONE, TWO], [0.7, 0.9, 0.99]).splitlines()[2] == (
        "| a | 2 | 72.50 ± 3.54 | 3.00 ± 1.41 | 2.50 ± 0.71 | 45.0 | 2.00 (1 never) | 60.0 | never |  |"
    )
