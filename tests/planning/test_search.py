"""The search: what it asks does not depend on when it was stopped, what cannot be is dropped with its reason."""

import pytest

from fedbonsai.errors import ConfigError
from fedbonsai.planning.journal import Journal
from fedbonsai.planning.limits import Limits
from fedbonsai.planning.question import Aim
from fedbonsai.planning.space import NETWORKS, Knob, usual
from tests.planning.table import ROUNDS, SPACE, Lookup, Stopped, curve, question, search, story

TRIALS = 20


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    done = search(tmp_path_factory.mktemp("whole"), question(bytes=500), Lookup(Limits(bytes=500)), TRIALS)
    done.run()
    return done


def test_a_bracket_trains_nine_settings_a_ninth_three_of_them_a_third_and_one_to_its_end(tmp_path):
    runner = Lookup(Limits())
    done = search(tmp_path / "plan", question(), runner, 9)
    done.run()
    assert [sum(upto == end for _, upto in runner.walked) for end in (1, 3, 9)] == [9, 3, 1]
    prices = {each.number: curve(each.asked.labels) for each in done.candidates.values()}
    best = done.candidates[max(prices, key=lambda number: (prices[number].values[0], -prices[number].bytes[0]))]
    assert [each.number for each in done.candidates.values() if each.whole] == [best.number]
    assert done.feasible()[0] is best


def test_a_setting_is_given_the_rounds_that_its_limit_allows_and_some_more(whole):
    lengths = {
        each.asked.labels["network"] + each.asked.labels.get("codec", ""): each.length
        for each in whole.candidates.values()
    }
    assert lengths["largefp32"] == 6  # 500 bytes, 100 a round: five, and a quarter
    assert lengths["largecoded"] == ROUNDS
    assert all(each.standing.within(Limits(bytes=500)) for each in whole.feasible())


STOPS = [pytest.param(kill, marks=[pytest.mark.exhaustive] * (kill % 9 != 1)) for kill in range(1, 30, 3)]


@pytest.mark.slow
@pytest.mark.parametrize("kill", STOPS)
def test_a_search_that_was_stopped_twice_is_as_one_that_was_not(tmp_path, whole, kill):
    asked, limits = question(bytes=500), Limits(bytes=500)
    for stop in (kill, 1 + kill // 2):  # calls of the second attempt are fewer, since what is done is not done again
        try:
            search(tmp_path / "plan", asked, Lookup(limits, stop), TRIALS).run()
        except Stopped:
            continue
    done = search(tmp_path / "plan", asked, Lookup(limits), TRIALS)
    done.run()
    assert story(done) == story(whole)


def test_other_seeds_ask_others(tmp_path, whole):
    done = search(tmp_path / "plan", question(bytes=500), Lookup(Limits(bytes=500)), TRIALS, seed=1)
    done.run()
    assert story(done)[0] != story(whole)[0]


@pytest.mark.slow
def test_a_kill_between_any_two_lines_of_the_journal_changes_nothing(tmp_path, whole):
    asked, limits = question(bytes=500), Limits(bytes=500)
    lines = (whole.journal._file).read_bytes().splitlines(keepends=True)
    for cut in range(0, len(lines), 37):
        folder = tmp_path / str(cut)
        folder.mkdir()
        half = lines[cut][: len(lines[cut]) // 2]
        (folder / "journal.log").write_bytes(b"".join(lines[:cut]) + half)
        (folder / "journal.log.lock").symlink_to("nowhere")  # as a kill leaves it
        done = search(folder, asked, Lookup(limits), TRIALS)
        done.run()
        assert story(done) == story(whole), cut


def test_advice_comes_first_and_nothing_is_asked_twice(tmp_path):
    space = SPACE.__class__(
        SPACE.recipes, SPACE.networks, SPACE.knobs, (SPACE.whole({"lr": "0.4"}), SPACE.whole({"recipe": "fedtiny"}))
    )
    journal = Journal(tmp_path, space, ["maximize"], 0)
    asked = [journal.ask({}) for _ in range(30)]
    assert asked[0].labels == {"recipe": "fedavg", "network": "large", "lr": "0.4", "codec": "fp32"}
    assert asked[1].labels["recipe"] == "fedtiny"
    labels = [tuple(sorted(each.labels.items())) for each in asked if each]
    assert len(set(labels)) == len(labels) > 20


@pytest.mark.slow
def test_a_space_that_is_used_up_ends_and_then_those_left_behind_go_on(tmp_path):
    runner = Lookup(Limits())
    done = search(tmp_path / "plan", question(), runner)
    done.run()
    assert done.journal.exhausted
    assert all(each.whole for each in done.candidates.values())
    best = max(done.candidates.values(), key=lambda each: each.standing.value(ROUNDS))
    assert done.feasible()[0].standing.value(ROUNDS) == best.standing.value(ROUNDS)


def test_what_cannot_run_is_dropped_before_it_trains_with_its_reason(tmp_path):
    runner = Lookup(Limits(), refused="large")
    done = search(tmp_path / "plan", question(), runner, 18)
    done.run()
    out = done.ruled_out()
    assert list(out) == ["memory above the device's"]
    assert {each.out[1] for each in out["memory above the device's"]} == {"needs 9 GB on a raspberry-pi-4"}
    dropped = {each.number for each in out["memory above the device's"]}
    assert dropped
    assert len(done.candidates) == 18 + len(dropped), "others are asked in their place"
    assert not dropped & {number for number, _ in runner.walked}
    assert {each.asked.labels["network"] for each in done.feasible()} == {"small"}


def test_a_limit_that_nothing_meets_is_named_with_how_much_is_missing(tmp_path):
    runner = Lookup(Limits(bytes=2))
    done = search(tmp_path / "plan", question(bytes=2), runner)
    with pytest.raises(ConfigError, match=r"no setting of \d+ meets the limits\. limit\.bytes binds") as told:
        done.run()
    assert "1.5 times the limit of 2 B" in str(told.value), "3 bytes a round is the least"
    assert not runner.walked


@pytest.mark.slow
def test_with_a_target_the_search_ends_with_the_cheapest_that_reaches_it(tmp_path):
    done = search(tmp_path / "plan", question(Aim(target=0.7)), Lookup(Limits()))
    done.run()
    best = done.feasible()[0].asked.labels
    costs = {}
    for each in done.candidates.values():
        held = curve(each.asked.labels)
        rounds = next((t for t in range(ROUNDS) if held.values[t] >= 0.7), None)
        if rounds is not None:
            costs[each.number] = (held.bytes[rounds], each.asked.labels)
    assert min(cost for cost, _ in costs.values()) == next(cost for cost, labels in costs.values() if labels == best)


def test_with_costs_to_lower_the_study_has_several_aims_and_the_best_are_a_front(tmp_path):
    done = search(tmp_path / "plan", question(Aim(lower=("bytes",))), Lookup(Limits()), 27)
    done.run()
    assert [each.name for each in done.journal._study.directions] == ["MAXIMIZE", "MINIMIZE"]
    first = done.feasible()[0].standing
    assert not any(
        each.standing.value(ROUNDS) >= first.value(ROUNDS) and each.standing.bytes[-1] < first.bytes[-1]
        for each in done.feasible()
        if each.whole
    )


@pytest.mark.parametrize("kind", NETWORKS)
def test_what_is_tried_first_is_of_the_space_and_has_two_networks(kind):
    space = usual(kind, 10, 0)
    assert len(space.advice) == 9
    assert all(space.whole(labels) == labels for labels in space.advice)
    assert {labels["network"] for labels in space.advice} == set(list(space.networks)[:2])
    assert next(labels for labels in space.advice if labels["recipe"] == "fedtiny")["network"] == next(
        iter(space.networks)
    )
    assert space.settings(space.whole({"recipe": "fl-pqsu"}))["method.pretrain"] == 0, "the server has no samples"
    assert "method.pretrain" not in usual(kind, 10, 100).settings(space.whole({"recipe": "fl-pqsu"}))


def test_a_space_names_what_is_not_known():
    with pytest.raises(ConfigError, match="network 'smal' is not known; did you mean 'small'"):
        SPACE.only(networks=["smal"])
    with pytest.raises(ConfigError, match="recipe 'fedvag' is not known; did you mean 'fedavg'"):
        SPACE.only(recipes=["fedvag"])
    part = SPACE.only(["fedtiny", "fedprox"], ["small", "lenet5"])
    assert list(part.recipes) == ["fedtiny", "fedprox"]
    assert part.networks == {"small": {"model.name": "mlp"}, "lenet5": {"model.name": "lenet5"}}


def test_labels_become_settings_and_networks_have_the_normalisation_that_their_method_needs():
    space = SPACE.__class__(
        SPACE.recipes, {"c": {"model.name": "cnn1d", "model.options": {"widths": [8]}}}, SPACE.knobs[:2]
    )
    found = space.settings(space.whole({"recipe": "fedtiny", "density": "0.5"}))
    assert found["model.options"] == {"widths": [8], "norm": "batch"}
    assert found["method.density"] == 0.5
    assert space.settings(space.whole({}))["model.options"]["norm"] == "group"
    assert isinstance(space.knobs[0], Knob)
