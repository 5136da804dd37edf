"""specs/collaborative C2: every codec on every awkward tensor, against an independent reading."""

import numpy as np
import pytest
import torch

from fedbonsai.stages.codec import Packed, parse, positions
from fedbonsai.stages.codec.cursor import Cursor
from fedbonsai.wire import decode, encode
from tests.codec.cases import CHAINS, identical, kinds, masks, tree

SIZES = [1, 7, 8, 9, 255, 256, 4097, 100_000]


def counts(n):
    return sorted({1, max(1, n - 1), n})


@pytest.mark.parametrize("codec", ["bitmap", "rice", "gaps", "range", "auto", "best"])
@pytest.mark.parametrize("n", SIZES)
def test_positions(codec, n):
    rng = np.random.default_rng(n)
    for k in {1, 2, n // 300, n // 3, n - 1} - {0, n}:
        if not 0 < k < n:
            continue
        for indices in (np.sort(rng.choice(n, k, replace=False)), np.arange(k), np.arange(n - k, n)):
            code, parts = positions.encode(indices, n, codec)
            cursor = Cursor(memoryview(b"".join(bytes(part) for part in parts)))
            assert (positions.decode(code, cursor, n, k) == indices).all()
            assert cursor.left == 0


def top(x, k):
    """Stable sort on -|x|, as specs/collaborative §2.2 words it."""
    return torch.from_numpy(np.sort(np.argsort(-x.abs().numpy(), kind="stable")[:k]))


def reference(v, stage, bits):
    """specs/collaborative §2.3, in float64, header floats as fp32."""
    v = v.double().numpy()
    if stage == "affine":
        lo, hi, top_ = np.float32(v.min()), np.float32(v.max()), 2**bits - 1
        magnitude, sign = v, 1.0
    else:
        magnitude, sign = np.abs(v), np.where(np.signbit(v), -1.0, 1.0)
        if bits == 1:
            return (sign * float(np.float32(magnitude.mean()))).astype(np.float32)
        lo, hi, top_ = np.float32(magnitude.min()), np.float32(magnitude.max()), 2 ** (bits - 1) - 1
    lo, hi = float(lo), float(hi)
    step = (hi - lo) / top_
    q = np.clip(np.rint((magnitude - lo) / step), 0, top_) if step else np.zeros_like(v)
    return (sign * (lo + step * q)).astype(np.float32)


@pytest.mark.parametrize("n", SIZES)
@pytest.mark.parametrize("codec", ["bitmap", "rice", "gaps", "range"])
@pytest.mark.parametrize(
    ("stage", "bits"), [("affine", 2), ("affine", 8), ("signmag", 1), ("signmag", 4), ("signmag", 8)]
)
def test_sparse_quantized_values_are_those_of_the_specification(n, codec, stage, bits):
    for name, x in kinds(n).items():
        for k in counts(n):
            top_k = {"topk": {"count": k, "min_numel": 0}}
            packed = parse([top_k, {stage: bits}, {"positions": codec}]).pack({"x": x}, 0)
            sent = decode(encode(packed)).sparse({"x": x})["x"]
            again = packed.sparse({"x": x})["x"]
            if not x.any():
                assert len(packed.payload) == 11  # version, flags, layout, EMPTY, checksum
                continue
            chosen = top(x, k)
            got = packed.dense({"x": x})["x"]
            expected = torch.zeros_like(x)
            small = len(packed.payload) - 10 == n * x.element_size() + 1  # sent in its own type: that was smaller
            expected[chosen] = x[chosen] if small else torch.from_numpy(reference(x[chosen], stage, bits)).to(x.dtype)
            assert torch.equal(got, expected), (name, k)
            assert torch.equal(sent.values, again.values)


@pytest.mark.slow
@pytest.mark.parametrize("n", SIZES)
@pytest.mark.parametrize("codec", ["bitmap", "rice", "gaps", "range"])
def test_values_in_their_own_type_are_exact(n, codec):
    for name, x in kinds(n).items():
        for k in counts(n):
            chain = parse([{"topk": {"count": k, "min_numel": 0}}, {"positions": codec}])
            expected = torch.zeros_like(x)
            expected[top(x, k)] = x[top(x, k)]
            assert torch.equal(chain.pack({"x": x}, 0).dense({"x": x})["x"], expected), (name, k)


@pytest.mark.parametrize("spec", CHAINS)
def test_every_chain_through_the_wire(spec):
    chain, x = parse(CHAINS[spec]), tree()
    before = {name: value.clone() for name, value in x.items()}
    mask = masks() if "known" in spec else None
    packed = chain.pack(x, 5, mask)
    received = decode(encode((chain, packed)))
    assert received[0] == chain
    dense = received[1].dense(x, mask)
    assert identical(dense, packed.dense(x, mask))
    assert identical(x, before)
    assert chain.pack(x, 5, mask) == packed  # specs/collaborative C17: the same message each time
    for name in ("bn.running_mean", "bn.running_var", "bn.num_batches_tracked", "flags", "empty"):
        assert identical({name: dense[name]}, {name: x[name]})
    sent = packed.sparse(x, mask)
    for name, part in sent.items():
        if part.indices is not None:
            assert torch.equal(dense[name].reshape(-1)[part.indices], part.values)


@pytest.mark.parametrize("spec", CHAINS)
@pytest.mark.parametrize("n", SIZES)
def test_dense_kinds_of_every_chain(spec, n):
    if "known" in spec:
        pytest.skip("its positions are tested with masks")
    chain = parse(CHAINS[spec])
    for name, x in kinds(n).items():
        packed = chain.pack({"x": x}, 3)
        got = packed.dense({"x": x})["x"]
        assert got.dtype == x.dtype, name
        assert torch.isfinite(got).all(), name
        assert len(packed.payload) <= n * x.element_size() + 20
        if not x.any():
            assert not got.any()


def test_small_tensors_are_sent_whole():
    x = {"small": torch.randn(255), "large": torch.randn(256)}
    sent = parse([{"topk": 0.01}, {"signmag": 8}]).pack(x, 0).sparse(x)
    assert sent["small"].indices is None
    assert torch.equal(sent["small"].values, x["small"])
    assert len(sent["large"].indices) == 3


def test_affine_per_channel_has_the_ranges_of_each_channel():
    x = torch.randn(6, 40) * torch.tensor([1e-3, 1, 10, 100, 1e4, 0])[:, None]
    got = parse([{"affine": {"bits": 8, "scope": "channel"}}]).pack({"x": x}, 0).dense({"x": x})["x"]
    expected = torch.stack([torch.from_numpy(reference(row, "affine", 8)) for row in x])
    assert torch.equal(got, expected)


def test_overhead_of_a_tensor():
    x = {str(i): torch.randn(1000) for i in range(10)}
    one = {"0": x["0"]}
    chain = parse([{"topk": 0.01}, {"signmag": 8}, {"positions": "rice"}])
    each = (len(chain.pack(x, 0).payload) - len(chain.pack(one, 0).payload)) / 9
    assert each - 10 - 10 * 8.1 / 8 < 20  # beside 10 values of 8 bits and 10 positions


def test_an_empty_tree():
    assert parse([]).pack({}, 0).dense({}) == {}
    assert Packed(parse([{"topk": 0.1}]).pack({}, 0).payload).dense({}) == {}
