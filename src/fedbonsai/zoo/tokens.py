"""Networks for tokens [length], that score the next one at each place: recurrent, or by attention (for series, too)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fedbonsai.arch import network
from fedbonsai.errors import ConfigError
from fedbonsai.zoo.parts import Mean, Tokens, chain, cut, positive
from fedbonsai.zoo.series import recurrent


@network("char-gru")
def char_gru(
    length: int = 80, vocabulary: int = 72, classes: int = 72, embedding: int = 16, hidden: int = 128, layers: int = 1
) -> nn.Module:
    """A vector for each token, gated recurrent units, and scores of the next token: 66,504 parameters for 72 characters.

    They are as many for rows of any length.

    Raises:
        ConfigError: an option below 1.
    """
    positive("char-gru", length=length, vocabulary=vocabulary, embedding=embedding, hidden=hidden, layers=layers)
    stem = chain(embedding=Tokens(vocabulary, embedding))
    return cut(stem, chain(**recurrent(embedding, hidden, layers)), nn.Linear(hidden, classes))


class Places(nn.Module):
    """What is learned of each place of a row, added to it."""

    def __init__(self, length: int, width: int) -> None:
        super().__init__()
        self.values = nn.Parameter(0.02 * torch.randn(length, width))

    def forward(self, x: Tensor) -> Tensor:
        """[samples, length or less, width] to the same."""
        return x + self.values[: x.shape[1]]


class Attention(nn.Module):
    """Attention of several heads (Vaswani et al. 2017), to earlier places only where it is causal."""

    def __init__(self, width: int, heads: int, causal: bool) -> None:
        super().__init__()
        self.head, self.causal = width // heads, causal
        self.query, self.key, self.value, self.out = (nn.Linear(width, width) for _ in range(4))
        self.runs = dict.fromkeys(("query", "key", "value"), self.head)  # outputs that are pruned together: heads

    def forward(self, x: Tensor) -> Tensor:
        """[samples, length, width] to the same."""
        query, key, value = (
            layer(x).unflatten(-1, (-1, self.head)).transpose(1, 2) for layer in (self.query, self.key, self.value)
        )
        mixed = F.scaled_dot_product_attention(query, key, value, is_causal=self.causal)
        return self.out(mixed.transpose(1, 2).flatten(2))


class Block(nn.Module):
    """Attention, then two linear layers for each place; both normalised before, and added to what came in."""

    def __init__(self, width: int, heads: int, hidden: int, causal: bool) -> None:
        super().__init__()
        self.norm1, self.attention = nn.LayerNorm(width), Attention(width, heads, causal)
        self.norm2, self.fc1, self.relu, self.fc2 = (
            nn.LayerNorm(width),
            nn.Linear(width, hidden),
            nn.ReLU(),
            nn.Linear(hidden, width),
        )

    def forward(self, x: Tensor) -> Tensor:
        """[samples, length, width] to the same."""
        x = x + self.attention(self.norm1(x))
        return x + self.fc2(self.relu(self.fc1(self.norm2(x))))


@network("tiny-transformer")
def tiny_transformer(
    length: int = 80,
    classes: int = 72,
    vocabulary: int = 0,
    features: int = 0,
    width: int = 64,
    heads: int = 4,
    layers: int = 2,
    hidden: int = 128,
) -> nn.Module:
    """Blocks of attention: 81,480 parameters for 80 of 72 characters.

    Tokens get a vector each, are attended to from later places only, and each place gives scores; series get a linear
    layer, are attended to from everywhere, and their mean gives the scores. Places are learned.

    Args:
        length: of a row, at most.
        classes: outputs.
        vocabulary: tokens that there are; 0 for series.
        features: of a series.
        width: of the vectors.
        heads: of attention; they share the width.
        layers: blocks.
        hidden: width between the two linear layers of a block.

    Raises:
        ConfigError: an option below 1, neither tokens nor series, or a width that the heads cannot share.
    """
    positive("tiny-transformer", length=length, width=width, heads=heads, layers=layers, hidden=hidden)
    if bool(vocabulary) == bool(features):
        raise ConfigError(
            f"model 'tiny-transformer': vocabulary = {vocabulary}, features = {features}: expected one of them, for tokens "
            "or for series"
        )
    if width % heads:
        raise ConfigError(f"model 'tiny-transformer': width = {width}: expected a multiple of heads = {heads}")
    first: nn.Module = Tokens(vocabulary, width) if vocabulary else nn.Linear(features, width)
    blocks = {f"block{n}": Block(width, heads, hidden, causal=bool(vocabulary)) for n in range(1, layers + 1)}
    rest = chain(places=Places(length, width), **blocks, norm=nn.LayerNorm(width))
    if not vocabulary:
        rest.append(Mean())
    return cut(chain(embedding=first), rest, nn.Linear(width, classes))
