"""specs/collaborative C7 and C8."""

import itertools
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedbonsai.stages.weighting import Weighting, weights

P, D = (0.5, 0.3, 0.2), (1.0, 2.0, 3.0)


@pytest.mark.parametrize(
    ("how", "want"),
    [
        (Weighting(beta=1), (0.661783, 0.240835, 0.097382)),
        (Weighting(beta=-1), (0.325040, 0.321540, 0.353420)),
        (Weighting(beta=0), P),
        (Weighting(beta=1, rule="inverse", eps=0), (0.697674, 0.209302, 0.093023)),
    ],
)
def test_c7_numbers_of_the_specification(how, want):
    assert weights(D, P, how) == pytest.approx(want, abs=5e-7)


def test_attention_gives_more_to_the_far():
    a = weights(D, (1, 1, 1), Weighting(rule="attention"))
    assert a == pytest.approx([math.exp(d) / sum(map(math.exp, D)) for d in D])


def test_kappa_mixes_the_prior_in_and_uniform_ignores_examples():
    pure = weights(D, P, Weighting(beta=1))
    assert weights(D, P, Weighting(beta=1, kappa=0.25)) == pytest.approx(
        [0.75 * a + 0.25 * p for a, p in zip(pure, P, strict=True)]
    )
    assert weights(D, P, Weighting(beta=0, prior="uniform")) == pytest.approx([1 / 3] * 3)


sets = st.lists(st.tuples(st.floats(0, 1e30), st.integers(1, 1000)), min_size=1, max_size=12)
rules = st.builds(
    Weighting,
    beta=st.floats(-3, 3),
    rule=st.sampled_from(["exp", "inverse"]),
    prior=st.sampled_from(["examples", "uniform"]),
    kappa=st.floats(0, 1),
)


@given(sets, rules)
def test_c8_a_distribution_whatever_comes(pairs, how):
    d, n = zip(*pairs, strict=True)
    a = weights(d, n, how)
    assert sum(a) == pytest.approx(1)
    assert all(0 <= x <= 1 + 1e-12 for x in a)
    turned = weights(d[::-1], n[::-1], how)
    assert turned[::-1] == pytest.approx(a, rel=1e-6, abs=1e-9)


@given(sets, st.floats(1e-6, 1e6), st.floats(-2, 2))
def test_c8_the_scale_of_distances_does_not_matter(pairs, scale, beta):
    d, n = zip(*pairs, strict=True)
    how = Weighting(beta=beta)
    assert weights([x * scale for x in d], n, how) == pytest.approx(weights(d, n, how), rel=1e-6, abs=1e-9)


@given(st.lists(st.floats(0, 100), min_size=2, max_size=8, unique=True), st.floats(0.1, 3))
def test_c8_farther_counts_less_at_equal_priors(d, beta):
    a = weights(sorted(d), [1] * len(d), Weighting(beta=beta))
    assert all(x >= y for x, y in itertools.pairwise(a))


def test_c8_edges():
    assert weights([5.0], [7], Weighting(beta=1)) == [1.0]
    assert weights([2, 2, 2], [5, 3, 2], Weighting(beta=1)) == pytest.approx(P)
    assert weights([0, 0, 0], [5, 3, 2], Weighting(beta=1)) == pytest.approx(P)
    assert weights([0, 0], [1, 1], Weighting(beta=1, rule="inverse", eps=0)) == pytest.approx([0.5, 0.5])
    assert weights([0, 1], [1, 1], Weighting(beta=1, rule="inverse", eps=0)) == pytest.approx([1, 0])
    assert weights([1, math.nan, 1], [1, 1, 1], Weighting(beta=1)) == pytest.approx([0.5, 0, 0.5])
    assert weights([1, math.inf], [1, 1], Weighting(beta=0)) == [1, 0]
    assert weights([1, 1], [0, 3], Weighting(beta=1)) == [0, 1]
    assert weights([math.nan], [3], Weighting(beta=1)) == [0]
    assert weights([1e30, 1e30, 1.0], [1, 1, 1], Weighting(beta=1))[2] > 0.5


def test_settings_that_cannot_be_meant():
    with pytest.raises(ValueError, match="kappa"):
        Weighting(kappa=2)
    with pytest.raises(ValueError, match="eps"):
        Weighting(eps=-1)
