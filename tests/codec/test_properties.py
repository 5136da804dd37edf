"""What holds for all inputs, not only for those that were thought of."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from fedbonsai.errors import NotFinite
from fedbonsai.stages.codec import apply, gaps, parse, positions
from fedbonsai.stages.codec.bits import ones, pack, packed_size, unpack
from fedbonsai.stages.codec.cursor import Cursor
from fedbonsai.stages.codec.draws import SUBSET, Draws
from fedbonsai.stages.codec.hadamard import rotate, unrotate
from fedbonsai.stages.codec.select import above, count_of, largest, largest_per_row
from fedbonsai.stages.codec.squeeze import unsqueeze
from fedbonsai.stages.codec.tensors import Sparse, taken

finite = st.floats(width=32, allow_nan=False, allow_infinity=False, min_value=-(2.0**100), max_value=2.0**100)
vectors = hnp.arrays(np.float32, st.integers(1, 400), elements=finite) | hnp.arrays(
    np.float32, st.integers(1, 400), elements=st.sampled_from([-2.0, -1.0, 0.0, 1.0, 2.0])
)


def stable(x, k):
    return np.sort(np.argsort(-np.abs(x), kind="stable")[:k])


@pytest.mark.slow
@given(vectors, st.data())
def test_selection_is_that_of_a_stable_sort(x, data):
    k = data.draw(st.integers(1, len(x)))
    assert (largest(x, k) == stable(x, k)).all()
    rows = data.draw(st.sampled_from([r for r in (1, 2, 3, 5) if len(x) % r == 0]))
    width = len(x) // rows
    k = data.draw(st.integers(1, width))
    expected = np.concatenate([stable(x[r * width : (r + 1) * width], k) + r * width for r in range(rows)])
    assert (largest_per_row(x, rows, k) == expected).all()
    assert (above(x, 1.0) == np.flatnonzero(np.abs(x) > 1)).all()


@pytest.mark.parametrize("k", [1, 50, 3_000, 100_000, 299_999])
@pytest.mark.parametrize("kind", ["normal", "ties", "sorted", "spike", "periodic"])
def test_selection_of_large_tensors_never_depends_on_the_sample(kind, k):
    rng = np.random.default_rng(0)
    x = {
        "normal": lambda: rng.standard_normal(300_000),
        "ties": lambda: rng.integers(-1, 2, 300_000),
        "sorted": lambda: np.arange(300_000),
        "spike": lambda: np.eye(1, 300_000, 299_998).reshape(-1),
        "periodic": lambda: np.tile([9.0] + [0.0] * 8, 33_334)[:300_000] * rng.random(300_000),
    }[kind]().astype(np.float32)
    assert (largest(x, k) == stable(x, k)).all()
    assert (largest(x.astype(np.float64), k) == stable(x, k)).all()


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize(
    "n", [4_096, 131_073, *(pytest.param(n, marks=pytest.mark.slow) for n in (1_048_577, 1_200_003))]
)
def test_selection_at_the_edges_of_its_blocks(n, dtype):
    x = np.random.default_rng(n).integers(-40, 41, n).astype(dtype)  # ties everywhere
    x[[0, -1]] = 41, -41
    for k in (1, 2, 3, n // 100, n // 9, n - 1):
        assert (largest(x, k) == stable(x, k)).all(), k
    for tau in (0.0, 39.0, 40.0, 41.0, float(np.finfo(dtype).max)):
        assert (above(x, tau) == np.flatnonzero(np.abs(x) > tau)).all(), tau
    assert len(above(x.astype(np.float32), 1e300)) == 0  # beyond the type of the values


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("at", [0, 131_071, 131_072, 1_048_576, 1_200_002])
def test_what_is_not_finite_is_found_wherever_it_is(value, at):
    x = np.zeros(1_200_003, np.float32)
    x[at] = value
    for select in (lambda: largest(x, 12_000), lambda: above(x, 1.0), lambda: above(x, 1e300), lambda: largest(x, 1)):
        with pytest.raises(NotFinite):
            select()


@pytest.mark.parametrize("count", [0, 1, 8, 4_095, 32_767, 40_001, 400_003])
@pytest.mark.parametrize("density", [0.0, 1e-4, 0.01, 0.09, 0.12, 0.5, 1.0])
def test_ones(count, density):
    flags = np.random.default_rng(0).random(count) < density
    flags[-1:] = True
    assert (ones(np.packbits(flags, bitorder="little"), count) == np.flatnonzero(flags)).all()
    flags[: count // 2] = False  # all in one half
    assert (ones(np.packbits(flags, bitorder="little"), count) == np.flatnonzero(flags)).all()


def test_gaps_by_hand():
    steps = np.array([0, 254, 255, 256, 510, 765])
    data = gaps.encode(steps)
    octets = [0, 254, 255, 0, 255, 1, 255, 255, 0, 255, 255, 255, 0]
    assert unsqueeze(Cursor(memoryview(data)), 100) == bytes(octets)
    places = np.cumsum(steps + 1) - 1
    assert (gaps.decode(Cursor(memoryview(data)), 10_000, len(steps)) == places).all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_elements_are_taken_and_put_back_bit_by_bit(dtype):
    value = torch.randn(2_000).to(dtype)
    value[7] = -0.0
    places = np.array([0, 7, 8, 1_999])
    kept = taken(value, places)
    assert kept.dtype == dtype
    assert kept.view(torch.uint8).equal(value[torch.from_numpy(places)].view(torch.uint8))
    sent = Sparse(torch.from_numpy(places), kept)
    expected = torch.zeros(40, 50, dtype=dtype)
    expected.view(-1)[places] = kept
    assert sent.dense(torch.empty(40, 50, dtype=dtype)).view(torch.uint8).equal(expected.view(torch.uint8))
    base = torch.randn(40, 50).to(dtype)
    assert sent.added(base, -1).equal(base - expected)


def test_counts():
    assert [count_of(f, n) for f, n in ((0.07, 100), (0.375, 8), (1e-9, 5), (1.0, 7), (0.01, 101))] == [7, 3, 1, 7, 2]


@given(st.integers(1, 32), st.integers(0, 70), st.randoms())
def test_bit_fields(width, count, random_):
    fields = np.array([random_.getrandbits(width) for _ in range(count)], np.int64)
    packed = pack(fields, width)
    assert len(packed) == packed_size(count, width)
    assert (unpack(memoryview(packed.tobytes()), count, width) == fields).all()
    expected = sum(int(field) << (width * i) for i, field in enumerate(fields))
    assert int.from_bytes(packed.tobytes(), "little") == expected


@pytest.mark.slow
@given(st.integers(2, 3000), st.data())
def test_positions_round_trip(n, data):
    indices = np.array(sorted(data.draw(st.sets(st.integers(0, n - 1), min_size=1, max_size=min(n - 1, 300)))))
    codec = data.draw(st.sampled_from(["auto", "best", "bitmap", "rice", "gaps", "range"]))
    prefer = data.draw(st.sampled_from(["smallest", "fastest"]))
    code, parts = positions.encode(indices, n, codec, prefer)
    cursor = Cursor(memoryview(b"".join(bytes(part) for part in parts)))
    assert (positions.decode(code, cursor, n, len(indices)) == indices).all()
    assert cursor.left == 0


chains = st.sampled_from(
    [
        [{"signmag": 8}],
        [{"signmag": 4}],
        ["ternary"],
        [{"affine": 8}],
        ["drive"],
        [{"topk": {"fraction": 0.1, "min_numel": 0}}],
        [{"topk": {"fraction": 0.1, "min_numel": 0}}, {"signmag": 4}],
        [{"topk": {"fraction": 0.1, "min_numel": 0}}, "ternary"],
        [{"topk": {"fraction": 0.2, "min_numel": 0}}, "drive"],
        [{"randk": {"fraction": 0.3, "min_numel": 0}}, {"signmag": 8}, {"entropy": "zstd"}],
    ]
)


@pytest.mark.slow
@given(vectors, chains, st.integers(0, 2**63 - 1))
def test_never_larger_than_dense_and_error_feedback_loses_nothing(x, spec, seed):
    tensor = {"w": torch.from_numpy(x)}
    packed, memory = apply(parse(["ef14", *spec]), tensor, {}, seed, 0)
    assert len(packed.payload) <= 4 * len(x) + 20
    decoded = packed.dense(tensor)["w"]
    assert torch.equal(memory["residual"]["w"], tensor["w"] - decoded)


@pytest.mark.slow
@given(vectors, st.floats(0.01, 1), st.sampled_from([None, 1, 4, 8]))
def test_contraction(x, fraction, bits):
    tensor = {"w": torch.from_numpy(x)}
    top = {"topk": {"fraction": fraction, "min_numel": 0}}
    decoded = parse([top] if bits is None else [top, {"signmag": bits}]).pack(tensor, 0).dense(tensor)["w"]
    x64 = x.astype(np.float64)
    left = np.square(x64 - decoded.double().numpy()).sum()
    k = count_of(fraction, len(x))
    kept = np.abs(x64)[stable(x, k)]
    steps = 2 ** ((bits or 1) - 1) - 1
    quantization = 0.0 if bits is None else k * ((kept.max() - kept.min()) / (2 * steps)) ** 2 if steps else None
    if quantization is None:  # 1 bit: what the mean leaves of the kept values
        quantization = np.square(kept - kept.mean()).sum()
    bound = (1 - k / len(x)) * np.square(x64).sum() + quantization
    assert left <= bound * (1 + 1e-4) + 1e-30


@settings(max_examples=40)
@given(st.integers(1, 70_000), st.integers(0, 99))
def test_rotation_keeps_lengths_and_comes_back(n, seed):
    x = np.random.default_rng(seed).standard_normal(n).astype(np.float32)
    turned = rotate(x, Draws(seed, 0, 1))
    assert np.isclose(np.square(turned, dtype=np.float64).sum(), np.square(x, dtype=np.float64).sum(), rtol=1e-4)
    assert np.allclose(unrotate(turned, Draws(seed, 0, 1)), x, atol=1e-4)


def test_rotation_is_hadamard():
    signs = Draws(3, 0, 1).signs(8)
    h = np.array([[1]])
    for _ in range(3):
        h = np.block([[h, h], [h, -h]])
    turned = np.stack([rotate(row, Draws(3, 0, 1)) for row in np.eye(8, dtype=np.float32)])
    assert np.allclose(turned, signs[:, None] * h / np.sqrt(8))


@pytest.mark.parametrize(("unbiased", "expected"), [(False, 0.363), (True, 0.571)])
def test_drive_has_its_published_error(unbiased, expected):
    x = {"w": torch.randn(100_000, generator=torch.Generator().manual_seed(0))}
    packed = parse([{"drive": unbiased}]).pack(x, 7)
    error = (packed.dense(x)["w"] - x["w"]).square().sum() / x["w"].square().sum()
    assert abs(error - expected) < 0.01
    assert 32 * 100_000 / (8 * len(packed.payload)) > 31.9


@pytest.mark.slow
@pytest.mark.parametrize(
    "spec",
    [
        [{"affine": {"bits": 2, "rounding": "stochastic"}}],
        [{"signmag": {"bits": 3, "rounding": "stochastic"}}],
        [{"qsgd": 2}],
        [{"drive": True}],
        [{"randk": {"fraction": 0.25, "unbiased": True, "min_numel": 0}}],
    ],
)
def test_unbiased(spec):
    x = {"w": torch.randn(50, 6, generator=torch.Generator().manual_seed(1))}
    chain, turns = parse(spec), 1500
    mean, square = torch.zeros(50, 6, dtype=torch.float64), torch.zeros(50, 6, dtype=torch.float64)
    for seed in range(turns):
        value = chain.pack(x, seed).dense(x)["w"].double()
        mean += value / turns
        square += value.square() / turns
    variance = (square - mean.square()).sum() / turns
    assert (mean - x["w"]).square().sum() < 1.3 * variance  # 1.0 is expected if the expectation is the input


def test_shared_subsets_are_uniform():
    hits = np.zeros(30)
    for seed in range(3000):
        drawn = Draws(seed, 0, SUBSET).subset(30, 10)
        assert len(set(drawn.tolist())) == 10
        hits[drawn] += 1
    assert abs(hits - 1000).max() < 5 * np.sqrt(3000 * 2 / 9)
    for n, k in ((5, 5), (5, 0), (1, 1), (10_000, 9_000), (10_000, 5_000)):
        drawn = Draws(1, 2, SUBSET).subset(n, k)
        assert len(np.unique(drawn)) == k
        assert (np.diff(drawn) > 0).all()


def test_streams_never_change():
    assert Draws(1, 2, 0).subset(1000, 5).tolist() == [215, 351, 474, 524, 816]
    assert Draws(1, 2, 1).signs(8).tolist() == [-1, 1, 1, -1, -1, -1, -1, -1]
    assert (Draws(1, 2, 2).uniform(3) * 2**32).tolist() == [3521433675, 767841067, 461239534]
