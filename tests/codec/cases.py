"""Chains and tensors that the codec tests share."""

import numpy as np
import torch

CHAINS = {
    "dense": [],
    "fp32": ["fp32"],
    "fp16": ["fp16"],
    "bf16": ["bf16"],
    "affine8": [{"affine": 8}],
    "affine5-zstd": [{"affine": 5}, {"entropy": "zstd"}],
    "affine4-channel": [{"affine": {"bits": 4, "scope": "channel"}}],
    "affine4-stochastic": [{"affine": {"bits": 4, "rounding": "stochastic"}}],
    "signmag1": [{"signmag": 1}],
    "signmag4-zstd": [{"signmag": 4}, {"entropy": "zstd"}],
    "signmag8-range": [{"signmag": 8}, {"entropy": "range"}],
    "drive": ["drive"],
    "drive-unbiased": [{"drive": True}],
    "qsgd127": [{"qsgd": 127}],
    "qsgd4-zstd": [{"qsgd": 4}, {"entropy": "zstd"}],
    "topk-auto": [{"topk": {"fraction": 0.05, "min_numel": 0}}],
    "topk-bitmap-signmag8": [
        {"topk": {"fraction": 0.05, "min_numel": 0}},
        {"signmag": 8},
        {"positions": "bitmap"},
    ],
    "topk-rice-signmag6": [{"topk": {"fraction": 0.05, "min_numel": 0}}, {"signmag": 6}, {"positions": "rice"}],
    "topk-gaps-affine8": [{"topk": {"fraction": 0.05, "min_numel": 0}}, {"affine": 8}, {"positions": "gaps"}],
    "topk-range-ternary": [{"topk": {"fraction": 0.05, "min_numel": 0}}, "ternary", {"positions": "range"}],
    "topk-row-affine8": [{"topk": {"fraction": 0.1, "scope": "row", "min_numel": 0}}, {"affine": 8}],
    "topk-global-fp16": [{"topk": {"fraction": 0.05, "scope": "global", "min_numel": 0}}, "fp16"],
    "topk-drive": [{"topk": {"fraction": 0.3, "min_numel": 0}}, "drive"],
    "threshold-bf16": [{"threshold": {"tau": 1.5, "min_numel": 0}}, "bf16"],
    "randk": [{"randk": {"fraction": 0.2, "min_numel": 0}}],
    "randk-unbiased-signmag8": [{"randk": {"fraction": 0.2, "unbiased": True, "min_numel": 0}}, {"signmag": 8}],
    "grid": [{"grid": 0.25}],
    "threshold-grid-rice": [{"threshold": {"tau": 0.2, "min_numel": 0}}, {"grid": 0.25}, {"positions": "rice"}],
    "known": ["known"],
    "known-signmag4": ["known", {"signmag": 4}],
}
# their bytes depend on the version of zstandard or constriction
FOREIGN = {name for name, spec in CHAINS.items() if "zstd" in str(spec) or "range" in str(spec) or "gaps" in str(spec)}
FOREIGN |= {"topk-auto", "topk-row-affine8", "topk-global-fp16", "topk-drive", "threshold-bf16"}  # may choose gaps


def tree(seed=0):
    """One tensor of each kind that is treated in its own way."""
    g = torch.Generator().manual_seed(seed)
    return {
        "conv.weight": torch.randn(8, 3, 5, 5, generator=g),
        "conv.bias": torch.randn(8, generator=g),
        "bn.running_mean": torch.randn(8, generator=g),
        "bn.running_var": torch.rand(300, generator=g),
        "bn.num_batches_tracked": torch.tensor(17),
        "double": torch.randn(70, 4, generator=g, dtype=torch.float64),
        "half": torch.randn(300, generator=g).to(torch.float16),
        "zero": torch.zeros(400),
        "flags": torch.tensor([True, False, True] * 5),
        "empty": torch.zeros(0, 3),
        "scalar": torch.tensor(0.25),
    }


def masks():
    """Masks for `known`: not of every tensor."""
    g = torch.Generator().manual_seed(9)
    return {
        "conv.weight": torch.rand(8, 3, 5, 5, generator=g) < 0.1,
        "double": torch.ones(70, 4, dtype=torch.bool),
        "zero": torch.zeros(400, dtype=torch.bool),
    }


def kinds(n, seed=0):
    """Flat tensors that are hard on a codec."""
    rng = np.random.default_rng(seed)
    normal = torch.from_numpy(rng.standard_normal(n).astype(np.float32))
    return {
        "random": normal,
        "equal": torch.full((n,), -1.5),
        "zero": torch.zeros(n),
        "ties": torch.from_numpy(rng.integers(-2, 3, n).astype(np.float32)),
        "denormal": torch.from_numpy((rng.integers(-3, 4, n) * 1e-45).astype(np.float32)),
        "double": normal.double() * 1e-3,
    }


def identical(left, right):
    """Same names, types, shapes and bits."""
    return list(left) == list(right) and all(
        left[name].dtype == right[name].dtype
        and left[name].shape == right[name].shape
        and left[name].numpy().tobytes() == right[name].numpy().tobytes()
        for name in left
    )
