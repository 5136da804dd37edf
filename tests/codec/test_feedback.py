"""specs/collaborative C3 and C4, decay, reset, and the two halves of EF21."""

import pytest
import torch

from fedbonsai.stages.codec import NotFinite, apply, parse, receive
from fedbonsai.tree import generator
from fedbonsai.wire import decode, encode
from tests.codec.cases import identical, tree


def test_c3_what_was_sent_and_what_is_held_is_what_was_given():
    chain = parse(["ef14", {"topk": 0.05}, {"signmag": 8}])
    g = generator(0)
    memory, given, sent = {}, torch.zeros(1000, dtype=torch.float64), torch.zeros(1000, dtype=torch.float64)
    for t in range(200):
        update = torch.randn(1000, generator=g, dtype=torch.float64)
        corrected = update + memory.get("residual", {}).get("w", 0)
        packed, memory = apply(chain, {"w": update}, memory, t, t)
        decoded = packed.dense({"w": update})["w"]
        given += update
        sent += decoded
        assert torch.equal(memory["residual"]["w"], corrected - decoded)
        assert (corrected - decoded).square().sum() / corrected.square().sum() <= 0.95 + 1e-3
    assert (given - sent - memory["residual"]["w"]).abs().max() < 1e-10


SMALL, LARGE = ({"topk": {"fraction": 0.2, "min_numel": least}} for least in (10, 100))
WHERE = {"a": torch.arange(40) % 3 == 0}


@pytest.mark.parametrize(
    "turns",
    [
        [([{"signmag": 3}], None), ([LARGE, {"signmag": 3}], None)],  # quantized first, later too small for it
        [([SMALL], None), ([LARGE, {"affine": 2}], None), ([SMALL, {"drive": True}], None)],
        [(["known", {"affine": 3}], {**WHERE, "b": torch.ones(300, dtype=torch.bool)}), (["known"], WHERE)],
        [([{"threshold": {"tau": 1.0, "min_numel": 1}}], None), (["known"], {})],
    ],
)
def test_what_is_owed_is_paid_when_a_tensor_is_no_longer_compressed(turns):
    """Whichever tensors are compressed in a round, nothing is lost: sum(D) = sum(sent) + residual."""
    draws, memory, like = generator(9), {}, {"a": torch.zeros(40).double(), "b": torch.zeros(300).double()}
    given, sent, left = dict(like), dict(like), False
    for t in range(12):
        spec, mask = turns[t // 2 % len(turns)]
        update = {name: torch.randn(value.shape, generator=draws, dtype=torch.float64) for name, value in like.items()}
        before = memory.get("residual", {})
        packed, memory = apply(parse(["ef14", *spec]), update, memory, t, t, mask)
        got = packed.dense(like, mask)
        for name in like:
            given[name], sent[name] = given[name] + update[name], sent[name] + got[name]
            owed = memory["residual"].get(name, torch.zeros(()))
            torch.testing.assert_close(given[name], sent[name] + owed, rtol=0, atol=1e-6)
        left |= any(before[name].any() for name in before.keys() - memory["residual"].keys())
    assert left  # a tensor with a residual did leave


def test_ef21_agrees_when_other_tensors_are_compressed():
    client, server = {}, {}
    for t in range(6):
        chain = parse(["ef21", SMALL if t % 2 else LARGE, {"affine": 4}])
        update = {"a": torch.randn(40, generator=generator(t)), "b": torch.randn(300, generator=generator(9))}
        packed, client = apply(chain, update, client, t, t)
        got, server = receive(chain, packed, update, server, t)
        assert identical(client["estimate"], server["estimate"])
        assert torch.equal(got["a"], client["estimate"]["a"] if t % 2 else update["a"])


def test_what_cannot_be_paid_is_refused():
    chain, update = parse(["ef14", {"topk": 0.1}]), {"w": torch.randn(300), "head": torch.randn(300)}
    _, memory = apply(chain, update, {}, 0, 0)
    with pytest.raises(ValueError, match=r"'head' has shape .*no such tensor; drop the memory"):
        apply(chain, {"w": update["w"]}, memory, 0, 1)
    with pytest.raises(ValueError, match="a residual of ef14 is held"):
        apply(parse(["ef21", {"topk": 0.1}]), update, memory, 0, 1)


@pytest.mark.parametrize(("feedback", "converges"), [([], False), (["ef14"], True), (["ef21"], True)])
@pytest.mark.slow
def test_c4_three_quadratics(feedback, converges):
    a = torch.tensor([[-3.0, 2, 2], [2, -3, 2], [2, 2, -3]], dtype=torch.float64)
    chain = parse([*feedback, {"topk": {"count": 1, "min_numel": 0}}])
    w, clients, servers = torch.ones(3, dtype=torch.float64), [{}, {}, {}], [{}, {}, {}]
    for t in range(2000):
        total = torch.zeros(3, dtype=torch.float64)
        for i in range(3):
            gradient = {"w": 2 * a[i].dot(w) * a[i] + w / 2}
            # EF14 feeds back what is applied, learning rate included; EF21 estimates the gradient itself
            rate = 1.0 if feedback == ["ef21"] else 0.02
            packed, clients[i] = apply(chain, {"w": rate * gradient["w"]}, clients[i], t, t)
            update, servers[i] = receive(chain, packed, gradient, servers[i], t)
            total += update["w"] * (0.02 / rate)
        w = w - total / 3
        if not w.norm() < 1e12:
            break
    assert (w.norm() < 1e-10) if converges else (w.norm() > 1e12 and 700 < t < 850)


def test_ef21_both_ends_hold_the_same_bits():
    chain = parse(["ef21", {"topk": 0.1}, {"signmag": 4}])
    client, server = {}, {}
    for t in range(12):
        update = tree(t)
        packed, client = apply(chain, update, client, t, t)
        got, server = receive(chain, decode(encode(packed)), update, server, t)
        assert identical(client["estimate"], server["estimate"])
        assert identical({name: got[name] for name in client["estimate"]}, client["estimate"])
        assert torch.equal(got["bn.running_mean"], update["bn.running_mean"])
    assert "bn.running_mean" not in client["estimate"]


def test_ef21_estimates_a_constant_update_ever_better():
    chain = parse(["ef21", {"topk": 0.05}])
    update, memory, errors = {"w": torch.randn(1000, generator=generator(1))}, {}, []
    for t in range(20):
        _, memory = apply(chain, update, memory, t)
        errors.append(float((memory["estimate"]["w"] - update["w"]).norm()))
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] == 0


def test_memory_travels_and_nothing_given_is_changed():
    chain = parse(["ef14", {"topk": 0.1}, {"signmag": 8}])
    update = tree()
    _, memory = apply(chain, update, {}, 0, 3)
    assert memory["round"] == 3
    assert set(memory["residual"]) == {"conv.weight", "double", "half", "zero"}
    before = encode(memory)
    _, after = apply(chain, update, decode(encode(memory)), 0, 4)
    again = apply(chain, update, memory, 0, 4)[1]
    assert encode(after) == encode(again)
    assert encode(memory) == before
    assert identical(update, tree())


def test_decay_on_return_and_reset():
    update = {"w": torch.randn(400, generator=generator(2))}
    zero = {"w": torch.zeros(400)}
    chain = parse([{"ef14": {"decay": 0.5, "reset": 3}}, {"topk": 0.1}])
    _, memory = apply(chain, update, {}, 0, 0)
    residual = memory["residual"]["w"]

    def next_residual(t):
        packed, new = apply(chain, zero, memory, 0, t)
        return packed.dense(zero)["w"] + new["residual"]["w"]

    assert torch.equal(next_residual(1), residual)  # nothing was missed
    assert torch.equal(next_residual(2), residual * 0.5)
    assert torch.equal(next_residual(3), residual * 0.5)
    assert not next_residual(4).any()  # three rounds were missed
    assert torch.equal(next_residual(None), residual)


def test_without_feedback_the_memory_is_left_alone():
    chain = parse([{"topk": 0.1}])
    update = tree()
    packed, memory = apply(chain, update, {"head": 1}, 0)
    assert memory == {"head": 1}
    assert identical(receive(chain, packed, update, {})[0], packed.dense(update))


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize(
    "spec", [[], ["fp16"], [{"affine": 8}], [{"topk": 0.1}], [{"topk": {"fraction": 0.1, "scope": "global"}}],
             [{"topk": {"fraction": 0.1, "scope": "row"}}], [{"threshold": 1.0}], [{"randk": 0.1}], ["drive"]]
)  # fmt: skip
def test_what_is_not_finite_is_named(spec, value):
    for at in (0, 69_999):
        update = {"fine": torch.randn(300), "bad": torch.randn(2, 35_000)}
        update["bad"].view(-1)[at] = value
        with pytest.raises(NotFinite, match="tensor 'bad'"):
            apply(parse(spec), update, {}, 0)


def test_too_large_for_the_codec():
    huge = {"w": torch.full((300,), 3e38)}
    huge["w"][0] = -3e38
    for spec in ([{"qsgd": 4}], ["drive"], [{"randk": {"fraction": 0.01, "unbiased": True}}]):
        with pytest.raises(NotFinite):
            parse(spec).pack(huge, 0)
    for spec in (["fp16"], ["bf16"], [{"affine": 8}], [{"signmag": 8}], ["ternary"]):
        assert torch.isfinite(parse(spec).pack(huge, 0).dense(huge)["w"]).all()
    for spec in (["fp32"], [{"affine": 8}], [{"signmag": 4}], ["ternary"]):
        with pytest.raises(NotFinite):
            parse(spec).pack({"w": torch.full((300,), 1e200, dtype=torch.float64)}, 0)


def test_another_architecture_is_told():
    chain = parse(["ef14", {"topk": 0.1}])
    _, memory = apply(chain, {"w": torch.randn(300)}, {}, 0)
    with pytest.raises(ValueError, match="drop the memory"):
        apply(chain, {"w": torch.randn(299)}, memory, 0)


@pytest.mark.parametrize(
    "spec",
    [
        [{"affine": 2}],
        [{"affine": {"bits": 2, "rounding": "stochastic"}}],
        [{"signmag": 1}],
        [{"signmag": 2}],
        [{"signmag": {"bits": 3, "rounding": "stochastic"}}],
        [{"drive": True}],
        [{"randk": {"fraction": 0.3, "min_numel": 0}}],
    ],
    ids=str,
)
def test_what_is_allowed_with_feedback_stays_bounded(spec):
    chain, memory = parse(["ef14", *spec]), {}
    draws, norms = generator(5), list[float]()
    for t in range(60):
        update = {"w": torch.randn(400, generator=draws) ** 3}  # tails that are heavy
        _, memory = apply(chain, update, memory, t)
        norms.append(float(memory["residual"]["w"].norm()))
    assert max(norms[30:]) < 2 * max(norms[:30])
    assert max(norms) < 20 * float(update["w"].norm())
