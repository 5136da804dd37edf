"""Optimisers against those of torch, step by step; rates by round."""

from dataclasses import replace

import pytest
import torch

from fedbonsai.training import SGD, Adam, AdamW, Moving
from fedbonsai.wire import decode, encode

SHAPES = [(3, 4), (5,), (2, 2, 2)]


def drawn(seed):
    random = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=random) for shape in SHAPES]


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        (SGD(lr=0.1), lambda p: torch.optim.SGD(p, 0.1)),
        (SGD(lr=0.1, momentum=0.9, weight_decay=0.01), lambda p: torch.optim.SGD(p, 0.1, 0.9, weight_decay=0.01)),
        (Adam(lr=0.01), lambda p: torch.optim.Adam(p, 0.01)),
        (
            Adam(lr=0.01, weight_decay=0.1, beta1=0.8),
            lambda p: torch.optim.Adam(p, 0.01, (0.8, 0.999), weight_decay=0.1),
        ),
        (AdamW(lr=0.01), lambda p: torch.optim.AdamW(p, 0.01)),
        (AdamW(lr=0.01, weight_decay=0.2, eps=1e-3), lambda p: torch.optim.AdamW(p, 0.01, eps=1e-3, weight_decay=0.2)),
    ],
)
def test_steps_are_those_of_torch_also_where_a_parameter_is_left_out(ours, theirs):
    mine, other = drawn(0), [value.requires_grad_() for value in drawn(0)]
    moving, reference = Moving(mine, ours.slots()), theirs(other)
    for step in range(6):
        grads = [None if step == 2 and i == 1 else grad for i, grad in enumerate(drawn(step + 1))]
        for value, grad in zip(other, grads, strict=True):
            value.grad = None if grad is None else grad.clone()
        reference.step()
        moving.move(ours, grads, ours.lr)
        for value, want in zip(mine, other, strict=True):
            torch.testing.assert_close(value, want.detach(), rtol=1e-6, atol=1e-7)


def test_rates_by_round():
    def rates(**change):
        how = SGD(lr=1.0, **change)
        return [round(how.rate(t), 4) for t in range(6)]

    assert rates() == [1.0] * 6
    assert rates(schedule="step", rounds=2, factor=0.5) == [1, 1, 0.5, 0.5, 0.25, 0.25]
    assert rates(schedule="cosine", rounds=5, factor=0.0) == [1.0, 0.8536, 0.5, 0.1464, 0.0, 0.0]
    assert rates(warmup=2) == [0.5, 1, 1, 1, 1, 1]


@pytest.mark.parametrize(
    ("kind", "wrong"),
    [
        (SGD, {"schedule": "step"}),
        (SGD, {"factor": 0.5}),
        (SGD, {"warmup": -1}),
        (Adam, {"beta1": 1.0}),
        (AdamW, {"eps": 0.0}),
        (Adam, {"lr": float("inf")}),
    ],
)
def test_settings_that_cannot_be_meant_are_refused(kind, wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        kind(**wrong)


def test_all_faults_are_told_at_once_and_steps_stand_for_epochs():
    with pytest.raises(ValueError, match=r"^lr = -1: ") as caught:
        SGD(lr=-1, epochs=0, clip=float("nan"), sparse="yes", momentum=1)  # type: ignore[arg-type]
    told = str(caught.value).split("; ")
    assert told[:4] == [
        "lr = -1: expected a finite number >= 0",
        "clip = nan: expected 0 (none), or a finite norm",
        "sparse = yes: expected 'off', 'auto' or 'on'",
        "epochs = 0: expected at least 1 (or set steps)",
    ]
    assert told[-1] == "momentum = 1: expected a number in [0, 1)"
    assert SGD(epochs=0, steps=3).steps == 3


def test_a_schedule_travels_only_where_there_is_one():
    plain = encode(SGD())
    assert b"schedule" not in plain
    both = (SGD(), replace(SGD(), schedule="step", rounds=3), SGD(lr=1), SGD(warmup=1))
    assert decode(encode(both)) == both
    assert decode(encode(AdamW(clip=1.0))) == AdamW(clip=1.0)
