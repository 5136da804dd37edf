"""What travels, made small: sparsifiers, quantizers and position codecs in chains, and error feedback around them."""

from fedbonsai.errors import NotFinite
from fedbonsai.stages.codec.chain import Chain, parse
from fedbonsai.stages.codec.feedback import apply, receive
from fedbonsai.stages.codec.packed import Packed, Sparse
from fedbonsai.stages.codec.positions import entropy_bound
from fedbonsai.stages.codec.ranges import available as range_coder_available
from fedbonsai.stages.codec.stages import (
    EF14,
    EF21,
    Affine,
    Bf16,
    Drive,
    Entropy,
    Fp16,
    Fp32,
    Known,
    Positions,
    Qsgd,
    RandK,
    SignMag,
    Sparsifier,
    Stage,
    Threshold,
    TopK,
)

__all__ = [
    "EF14",
    "EF21",
    "Affine",
    "Bf16",
    "Chain",
    "Drive",
    "Entropy",
    "Fp16",
    "Fp32",
    "Known",
    "NotFinite",
    "Packed",
    "Positions",
    "Qsgd",
    "RandK",
    "SignMag",
    "Sparse",
    "Sparsifier",
    "Stage",
    "Threshold",
    "TopK",
    "apply",
    "entropy_bound",
    "parse",
    "range_coder_available",
    "receive",
]
