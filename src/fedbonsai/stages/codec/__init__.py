"""What travels, made small: sparsifiers, quantizers and position codecs in chains, and error feedback around them."""

from fedbonsai.errors import NotFinite
from fedbonsai.stages.codec.chain import Chain, parse
from fedbonsai.stages.codec.context import Candidate, Context
from fedbonsai.stages.codec.entropy import Entropy
from fedbonsai.stages.codec.feedback import EF14, EF21, apply, receive
from fedbonsai.stages.codec.grid import Grid
from fedbonsai.stages.codec.packed import Packed
from fedbonsai.stages.codec.positions import Positions, entropy_bound
from fedbonsai.stages.codec.ranges import available as range_coder_available
from fedbonsai.stages.codec.registry import stage
from fedbonsai.stages.codec.sparsifiers import Known, RandK, Threshold, TopK
from fedbonsai.stages.codec.stages import EntropyCoder, Feedback, PositionCodec, Sparsifier, Stage, Values
from fedbonsai.stages.codec.tensors import Sparse
from fedbonsai.stages.codec.values import Affine, Bf16, Drive, Fp16, Fp32, Qsgd, SignMag

__all__ = [
    "EF14",
    "EF21",
    "Affine",
    "Bf16",
    "Candidate",
    "Chain",
    "Context",
    "Drive",
    "Entropy",
    "EntropyCoder",
    "Feedback",
    "Fp16",
    "Fp32",
    "Grid",
    "Known",
    "NotFinite",
    "Packed",
    "PositionCodec",
    "Positions",
    "Qsgd",
    "RandK",
    "SignMag",
    "Sparse",
    "Sparsifier",
    "Stage",
    "Threshold",
    "TopK",
    "Values",
    "apply",
    "entropy_bound",
    "parse",
    "range_coder_available",
    "receive",
    "stage",
]
