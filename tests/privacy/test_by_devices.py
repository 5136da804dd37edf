"""Noise shared out over devices under the secure sum: what is summed, how noisy it is, and that nothing else comes out."""

from __future__ import annotations

import random
from dataclasses import replace
from fractions import Fraction
from math import isnan, sqrt

import numpy as np
import pytest
import torch

from fedbonsai.core import Client, Samples, Scope, scope, task
from fedbonsai.errors import ConfigError, Silent, Unanswered
from fedbonsai.fleets.local import LocalFleet
from fedbonsai.fleets.pool import PoolFleet
from fedbonsai.runs import private, recipes
from fedbonsai.runs.folder import Folder
from fedbonsai.runs.loop import loop
from fedbonsai.runs.setup import clients, federation, run_context
from fedbonsai.stages.privacy.accountant import Release, epsilon
from fedbonsai.stages.privacy.distributed import distributed_epsilon, noisy_codes
from fedbonsai.stages.privacy.settings import Privacy
from fedbonsai.stages.secure import conversation, device
from fedbonsai.stages.secure.codes import coded, form_of
from fedbonsai.stages.secure.fixed import frame
from fedbonsai.stages.secure.layout import layout
from fedbonsai.stages.secure.messages import Keys, Neighbours, Open, Order, Peer
from fedbonsai.stages.secure.noise import shared_noise
from fedbonsai.stages.secure.server import ordered, summed
from fedbonsai.stages.secure.settings import Secure
from fedbonsai.training.steps import Trained
from fedbonsai.tree import seed_of
from fedbonsai.wire import encode
from tests.mortal import Killed, Mortal
from tests.stages.secure.test_sum import STEPS, Dropping

PRIVACY = Privacy(clip=1.0, noise=0.5, where="devices")
SECURE = Secure(bits=12)
VALUES = 2000
START = {"w": torch.zeros(VALUES)}
NOTHING = Samples(torch.zeros(0, 1), torch.zeros(0))


def update(number: int) -> torch.Tensor:
    """Longer than the clip, all in one place of its own; the rest is zero."""
    found = torch.zeros(VALUES)
    found[number] = 5.0
    return found


@task("test/private")
def pretend(order: Order, me: Client, memory: dict) -> tuple[Keys | Open, dict]:
    """A device whose update is told by its number, with a count of samples and a loss that must not leave."""
    trained = Trained({"w": update(int(me.id))}, 777, 1, 3.25)
    return device.commit(order, coded(order, trained, START, PLACES, me.seed), (START,), me, memory)


PLACES = layout(START, {}, None, 0)


def fleet_of(count):
    return LocalFleet([Client(str(i), 100 + i, NOTHING, NOTHING) for i in range(count)])


def order_of(count, secure=SECURE, privacy=PRIVACY):
    return ordered(secure, count, 0, shared_noise(privacy, secure, count))


class Here(Dropping):
    """Knows our first step by the name of the other tests'."""

    def ask(self, task, send, at_least=1):
        return super().ask(replace(task, name=STEPS[0]) if task.name not in STEPS else task, send, at_least)


def total(fleet, order):
    with scope(fleet, Scope("run", 0, 0, 0)):
        return summed(fleet, pretend, dict.fromkeys(fleet.devices, order), order, START, PLACES).combined


# --- how large a share is -------------------------------------------------------------------------------------------


def test_a_share_by_hand():
    # of 10 devices each has 9 neighbours, of which 7 must stay: 8 are in a sum, and 2 may work with the server
    told = shared_noise(replace(PRIVACY, colluders=2), SECURE, 10)
    assert told.least == 8
    assert told.deviation == int(0.5 * 2047 / sqrt(6)) + 1 == 418
    assert told.deviation**2 * 6 >= (0.5 * 2047) ** 2 > (told.deviation - 1) ** 2 * 6
    assert not shared_noise(replace(PRIVACY, where="server"), SECURE, 10)


@pytest.mark.parametrize("colluders", [0, 5])
def test_what_the_account_says_is_what_the_shares_of_those_who_surely_stay_prove(colluders):
    privacy = replace(PRIVACY, noise=4.0, colluders=colluders)
    told = shared_noise(privacy, SECURE, 30)
    sure = told.least - colluders
    proven = distributed_epsilon(SECURE.largest, Fraction(told.deviation), sure, 10**9, 10, 1e-5)
    said = epsilon((Release(1.0, 4.0, 10),), 1e-5)
    assert said * 0.99 < proven <= said


def test_coarse_shares_that_are_still_allowed_cost_no_more():
    # 300 devices, of which 201 stay: 3 codes each are 42.5, for a clip of 63: the least that is allowed
    privacy, secure = Privacy(clip=1.0, noise=0.6, where="devices"), Secure(bits=7)
    told = shared_noise(privacy, secure, 300)
    assert told.deviation == 3
    proven = distributed_epsilon(63, Fraction(3), told.least, 10**9, 1, 1e-5)
    assert proven <= epsilon((Release(1.0, 0.6, 1),), 1e-5)
    with pytest.raises(
        ConfigError, match=r"secure\.bits = 6: .* would be 2 codes, and 3 are needed .* expected 8 bits"
    ):
        shared_noise(privacy, Secure(bits=6), 300)


def test_colluders_who_could_take_masks_away_alone_are_refused():
    with pytest.raises(ConfigError, match=r"colluders = 7: of 10 devices in a round 7 tell .* expected at most 6"):
        shared_noise(replace(PRIVACY, colluders=7), SECURE, 10)


# --- the sum --------------------------------------------------------------------------------------------------------


def test_the_sum_is_that_of_noisy_codes_in_the_open_to_the_bit_and_worked_out_from_the_shares():
    order = order_of(5)
    secret = total(fleet_of(5), order)
    open_ = total(fleet_of(5), order_of(5, replace(SECURE, masked=False)))
    assert torch.equal(secret.mean["w"], open_.mean["w"])
    codes = sum(
        noisy_codes(
            update(i),
            1.0,
            2047,
            Fraction(order.noise.deviation),
            random.Random(seed_of(seed_of(0, str(i), 0, 0), "noise", 0, 0)).randrange,
        )
        for i in range(5)
    )
    assert torch.equal(secret.mean["w"], (codes.double() * (1.0 / 2047 / 5)).float())
    assert isnan(secret.loss)
    assert secret.clipped == 0


def test_the_released_sum_is_as_noisy_as_stated_and_no_less_where_devices_fall_silent():
    """Over the places that no update touches; divided by those who were asked, however many stay."""
    order = order_of(8)  # 6 of 8 must stay
    told = order.noise
    for lost, stay in (((), 8), (("3", "6"), 6)):
        mean = total(Here(fleet_of(8), {"secure/mask": lost}), order).mean["w"]
        deviation = float(mean[8:].double().std())
        assert deviation == pytest.approx(told.deviation * sqrt(stay) / 2047 / 8, rel=0.05)
        assert deviation > 0.95 * 0.5 / 8  # noise of half a clip is promised
        seen = [i for i in range(8) if float(mean[i]) > 0.5 / 8]
        assert stay - 3 <= len(seen) <= stay + 1  # each update is one clip, and the noise a half of that


def test_one_share_is_much_less_noise_than_is_promised():
    told = order_of(30).noise
    alone, promised = (
        distributed_epsilon(2047, Fraction(told.deviation), count, VALUES, 1, 1e-5) for count in (1, told.least)
    )
    assert alone > 4 * promised


@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("masked", [True, False])
def test_with_too_few_devices_nothing_is_released(step, masked):
    if not masked and step != STEPS[0]:
        pytest.skip("the codes come in one step")
    fleet = Here(fleet_of(8), {step: ("1", "2", "3")})
    with pytest.raises(Unanswered, match=r"(5|6) are needed"):
        total(fleet, order_of(8, replace(SECURE, masked=masked)))
    assert not [name for name, *_ in fleet.seen if name == "secure/reveal" and step != name]


def test_devices_themselves_take_no_mask_away_where_the_noise_would_be_too_little(monkeypatch):
    """A server that goes on with five of eight: by the masks' own threshold, of five devices that told keys, they would do."""
    monkeypatch.setattr(conversation, "fewest", lambda order: 3)
    monkeypatch.setattr("fedbonsai.stages.secure.server.fewest", lambda order: 3)
    order = order_of(8)
    fleet = fleet_of(8)
    some = dict.fromkeys(fleet.devices[:5], order)
    with (
        scope(fleet, Scope("run", 0, 0, 0)),
        pytest.raises(Unanswered, match="5 are needed for the noise of their sum"),
    ):
        summed(fleet, pretend, some, order, START, PLACES)
    plain = ordered(Secure(bits=12, clip=6.0), 8, 0)  # without noise it is a sum
    with scope(fleet, Scope("run", 0, 0, 0)):
        assert summed(fleet, pretend, dict.fromkeys(some, plain), plain, START, PLACES).combined.examples == 5


def test_a_device_insists_on_as_many_others_until_the_end():
    order = order_of(8)
    me, told = Client("0", 0, NOTHING, NOTHING), {}
    people = {str(i): Client(str(i), i, NOTHING, NOTHING) for i in range(8)}
    memories = {}
    for id, one in people.items():
        told[id], memories[id] = pretend.run(order, one, {})
    peers = tuple(Peer(id, told[id]) for id in list(people)[1:])
    _, memory = device.share.run(Neighbours(order.session, 4, peers), me, memories["0"])
    assert memory[device.SECURE]["threshold"] == 5  # whatever the server says; of 7
    with pytest.raises(Silent, match="4 neighbours, 5 are needed for the noise"):
        device.share.run(Neighbours(order.session, 3, peers[:4]), me, memories["0"])


def test_neither_losses_nor_samples_nor_statistics_are_in_what_a_device_sends():
    order = order_of(4, replace(SECURE, masked=False))
    answer, _ = pretend.run(order, Client("1", 0, NOTHING, NOTHING), {})
    assert isinstance(answer, Open)
    form = frame(*form_of(order, VALUES, 3, 2))
    wide, learned, measured, wanted = form.signed(form.unpack(answer.payload))
    assert wide.tolist() == [1, 0, 0]
    assert (len(learned), len(measured), len(wanted)) == (VALUES, 0, 0)


def test_ten_deviations_of_noise_fit_beside_all_clips():
    order = order_of(8)
    _, row, _, _ = frame(*form_of(order, 1, 0)).fields
    most = 8 * 2047 + round(10 * order.noise.deviation * sqrt(8))
    for value in (most, -most):
        assert row.signed(row.unpack(memoryview(row.pack(row.words(np.array([value])))))).tolist() == [value]
    assert row.width == 16


def test_codes_that_would_all_be_cut_off_are_refused_before_anybody_is_asked():
    fleet = Here(fleet_of(4), {})
    with pytest.raises(
        ConfigError, match=r"secure\.bits = 6: an update of 2000 coordinates .* expected 11 bits or more"
    ):
        total(fleet, order_of(4, Secure(bits=6)))
    assert not fleet.seen


# --- runs -----------------------------------------------------------------------------------------------------------

SMALL = {
    "data.clients": 8,
    "data.limit": 200,
    "data.minimum": 1,
    "model.name": "mlp",
    "model.options": {"widths": [8]},
    "method.cohort": 5,
    "method.privacy": {"clip": 0.5, "noise": 0.5, "delta": 1e-3, "where": "devices"},
    "method.secure": {"bits": 16, "threshold": 0.5},
    "rounds": 3,
}


def config(recipe="dp-fedavg", **more):
    return recipes.load(recipe, "", {**SMALL, **more})


def end(found, fleet=None):
    made = run_context(found)
    made.fleet = fleet or made.fleet
    return loop(found, made, "run")


MASKED = {"method.density": 0.3}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("recipe", "settings"),
    [("random-mask", MASKED), ("fedadam", {}), ("fedavg", {"method.uplink": [{"randk": 0.3}]})],
    ids=["masks", "dense", "a part"],
)
def test_a_run_ends_with_the_bytes_of_the_same_codes_in_the_open_wherever_devices_work(recipe, settings):
    found = config(recipe, **settings)
    ended = end(found)
    open_ = end(config(recipe, **settings, **{"method.secure.masked": False, "method.secure.threshold": 2 / 3}))
    # 5 devices: with a threshold of a half 4 are sure to stay, with two thirds too
    assert encode(ended.state) == encode(open_.state)
    assert ended.state.account.releases == (Release(1.0, 0.5, 3),)
    told = [epsilon((Release(1.0, 0.5, t + 1),), 1e-3) for t in range(3)]
    assert [row["epsilon"] for row in ended.rows] == pytest.approx(told, rel=1e-12)
    of_samples = {"train_loss", "valid_accuracy", "valid_loss", "client_min", "withheld", "clipped", "clip"}
    assert not of_samples & set().union(*ended.rows)
    pool = PoolFleet(clients(federation(found)), 2)
    try:
        assert encode(end(found, pool).state) == encode(ended.state)
    finally:
        pool.close()


def test_under_a_mask_only_kept_weights_move():
    state = end(config("random-mask", rounds=1, **MASKED)).state
    for name, mask in state.held.masks.items():
        assert not bool(state.model.weights[name][~mask].count_nonzero())
        assert bool(mask.any())


def test_what_all_rounds_cost_takes_no_sampling_into_account():
    found = config(**{"budget.epsilon": 1e3})
    total = epsilon((Release(1.0, 0.5, 3),), 1e-3)
    assert f"epsilon {total:.3g} at delta 0.001 after 3 rounds" in private.planned(found, 8)
    with pytest.raises(ConfigError, match="the first round alone costs"):
        private.check(config(**{"budget.epsilon": 1.0}), 8, False)


@pytest.mark.slow
def test_a_round_that_was_killed_is_counted_once(tmp_path):
    found, folder = config(), Folder(tmp_path / "run")
    whole, made = end(found), run_context(found)
    made.fleet = Mortal(made.fleet, 1, after=1)
    with pytest.raises(Killed):
        loop(found, made, "run", folder)
    resumed = loop(found, run_context(found), "run", folder)
    assert encode(resumed.state) == encode(whole.state)
    assert [row["epsilon"] for row in resumed.rows] == [row["epsilon"] for row in whole.rows]


def test_a_round_of_which_nothing_was_released_costs_nothing():
    class Once(Dropping):
        """Two of five devices are gone, at the first try of round 1."""

        def ask(self, task, send, at_least=1):
            gone = [one.id for one in send][:2]
            first = task.name == "averaging/secure" and (self._scope.round, self._scope.attempt) == (1, 0)
            reached = {one: request for one, request in send.items() if not (first and one.id in gone)}
            return self.inner.ask(task, reached, at_least)

    found = config(retries=1)
    made = run_context(found)
    ended = end(found, Once(made.fleet, {}))
    assert ended.state.account.releases == (Release(1.0, 0.5, 3),)
    assert [row["attempt"] for row in ended.rows] == [0, 1, 0]


def test_the_devices_own_secrets_are_drawn_once():
    found = config(rounds=1, **{"method.privacy.draws": "system"})
    assert encode(end(found).state) != encode(end(found).state)


@pytest.mark.parametrize("recipe", ["dp-fedavg", "random-mask"])
@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"method.secure": {}}, "privacy.where = 'devices': .* set secure.bits, such as 16"),
        ({"method.privacy.where": "server"}, "privacy cannot be with secure: .* set privacy.where = 'devices'"),
        ({"method.privacy.quantile": 0.5}, "privacy.quantile cannot be with where = 'devices'"),
        ({"method.secure.clip": 0.2}, "leave secure.clip out"),
        ({"method.secure.examples": 9, "method.secure.rounding": "nearest"}, "secure.examples, secure.rounding out"),
        ({"method.secure.neighbours": 4}, "secure.neighbours cannot be with privacy.where"),
        (
            {"method.privacy.draws": "system", "method.secure": {"bits": 9, "masked": False}},
            "secure.masked = false shows",
        ),
        ({"method.mean": "median"}, "mean = median: privacy clips every change"),
        ({"method.privacy": {"clip": 1.0, "colluders": 1}}, "colluders has no effect where the server adds"),
        ({"fleet.kind": "flower"}, "set method.privacy.draws = 'system'"),
        ({"clock.devices": "raspberry-pi-4", "clock.first": 2}, "a device's speed would decide"),
    ],
)
def test_what_cannot_be_together_is_refused_by_name(recipe, settings, text):
    with pytest.raises(ConfigError, match=text):
        config(recipe, **settings)


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"model.name": "cnn-bn", "model.options": {"norm": "batch"}}, "means of devices' raw data"),
        ({"method.privacy.colluders": 4}, "privacy.colluders = 4: of 5 devices"),
        ({"method.privacy.delta": 0.2}, "with 8 devices a delta of 1 / 8"),
        ({"method.secure.bits": 3}, "a device's share of privacy.noise = 0.5 would be 1 codes"),
    ],
)
def test_what_a_fleet_or_a_model_cannot_have_is_refused_before_anybody_is_asked(settings, text):
    found = config(**settings)
    made = run_context(found)
    fleet = Here(made.fleet, {})
    with pytest.raises(ConfigError, match=text):
        end(found, fleet)
    assert not fleet.seen
