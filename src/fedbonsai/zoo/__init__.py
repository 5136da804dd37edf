"""The shipped networks; importing this package registers them (names and sources: `fedbonsai.arch.networks`).

All are one ``nn.Sequential`` of ``stem`` (up to and with the first weighted layer), ``features`` (whatever follows,
flattened at its end) and ``classifier`` (the last ``Linear`` alone): a network is cut, or given a personal head, by
name. Those of tokens give scores for each place.
"""

from fedbonsai.zoo import alexnet, cnn, cut, lenet, mlp, mobilenet, resnet, series, tabular, tokens, vgg, wrn

__all__ = [
    "alexnet",
    "cnn",
    "cut",
    "lenet",
    "mlp",
    "mobilenet",
    "resnet",
    "series",
    "tabular",
    "tokens",
    "vgg",
    "wrn",
]
