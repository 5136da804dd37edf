"""Two lines for whoever stays with an own Flower app: its clients' updates travel through one of our codecs.

The server wraps its strategy, ``CompressedStrategy(FedAvg(...), codec=[{"topk": 0.01}, {"signmag": 8}])``, and the
client names the mod first, ``ClientApp(mods=[codec_mod])``. What a client sends is then the packed difference between
the arrays that it returned and those that it was given; the strategy inside sees whole arrays as before. What the
server sends is left as it is. Error feedback (``ef14``) keeps its residual in ``Context.state``, which a SuperNode
holds in memory alone: it is gone when the node restarts, and then begins at zero.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, cast

import torch
from flwr.app import (
    Array,
    ArrayRecord,
    ConfigRecord,
    ConfigRecordValues,
    Context,
    Error,
    Message,
    MetricRecord,
    RecordDict,
)
from flwr.clientapp.typing import ClientAppCallable
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Strategy

from fedbonsai.errors import BadMessage, ConfigError, NotFinite
from fedbonsai.fleets.flower import compat
from fedbonsai.fleets.flower.limits import STYPE
from fedbonsai.stages.codec import Chain, Packed, apply, parse
from fedbonsai.tree import Weights, seed_of
from fedbonsai.wire import LIMIT, decode, encode

RECORD, PACKED, KEPT = "fedbonsai", "packed", "fedbonsai-residual"


class CompressedStrategy(Strategy):
    """A strategy around a strategy.

    Args:
        strategy: aggregates as it always did.
        codec: stages of a chain, as in a recipe; without any, updates travel in full.
        seed: of whatever the codec draws.

    Raises:
        ConfigError: stages that make no sense together, or that need the server's memory.
    """

    def __init__(self, strategy: Strategy, codec: list[Any], seed: int = 0) -> None:
        super().__init__()
        self.strategy, self._seed = strategy, seed
        self._chain = parse(codec)
        if self._chain.estimates:
            raise ConfigError("codec: ef21 needs an estimate of each client on the server; use ef14")
        self._sent: dict[int, Weights] = {}

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Messages of the strategy inside, which say in addition how to pack the answer."""
        self._sent = {}
        known: dict[int, Weights] = {}
        messages = list(self.strategy.configure_train(server_round, arrays, config, grid))
        for message in messages:
            node = message.metadata.dst_node_id
            record = _only(message.content)[1]
            self._sent[node] = known.get(id(record)) or known.setdefault(id(record), _tree(record))
            seed = seed_of(self._seed, str(node), server_round, 0)
            told: dict[str, ConfigRecordValues] = {"chain": bytes(encode(self._chain)), "seed": seed}
            # a record of its own for each: strategies give all nodes the same object
            message.content = RecordDict({**message.content, RECORD: ConfigRecord(told)})
        return messages

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """What the strategy inside makes of whole arrays; an answer that cannot be unpacked counts as a failure."""
        return self.strategy.aggregate_train(server_round, [self._unpacked(reply) for reply in replies])

    def _unpacked(self, reply: Message) -> Message:
        if not reply.has_content():
            return reply
        try:
            name, record = _only(reply.content)
            array = record.get(PACKED)
            if array is None or array.stype != STYPE or len(record) != 1:
                raise BadMessage("its arrays are not packed; put codec_mod first in the client's mods")
            before = self._sent[reply.metadata.src_node_id]
            value = decode(array.data, LIMIT)
            if not isinstance(value, Packed):
                raise BadMessage(f"a {type(value).__name__} instead of a packed update")
            sent = value.dense(before)
        except (BadMessage, KeyError) as error:
            node = reply.metadata.src_node_id  # the metadata of what is made here name the server
            return Message(Error(compat.CLIENT_FAILED, f"update of node {node}: {error}"), reply_to=reply)
        after = {key: old + sent[key] if old.is_floating_point() else sent[key] for key, old in before.items()}
        reply.content = RecordDict({**reply.content, name: _record(after)})
        return reply

    def configure_evaluate(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """As the strategy inside does."""
        return self.strategy.configure_evaluate(server_round, arrays, config, grid)

    def aggregate_evaluate(self, server_round: int, replies: Iterable[Message]) -> MetricRecord | None:
        """As the strategy inside does."""
        return self.strategy.aggregate_evaluate(server_round, replies)

    def summary(self) -> None:
        """As the strategy inside does."""
        self.strategy.summary()


def codec_mod(message: Message, context: Context, call_next: ClientAppCallable) -> Message:
    """Pack what the app returns, as the server's `CompressedStrategy` asked.

    Raises:
        BadMessage: what the server asked cannot be read.
        ConfigError: the app's arrays have other names or shapes than those that it was given.
        NotFinite: its values are NaN or infinite.
    """
    told = message.content.config_records.get(RECORD)
    if told is None:
        return call_next(message, context)  # an evaluation, or a strategy that does not compress
    chain = decode(cast(bytes, told["chain"]), LIMIT)
    if not isinstance(chain, Chain):
        raise BadMessage(f"a {type(chain).__name__} instead of a codec")
    before = _tree(_only(message.content)[1])
    reply = call_next(message, context)
    if not reply.has_content():
        return reply
    name, record = _only(reply.content)
    after = _tree(record)
    if {key: value.shape for key, value in after.items()} != {key: value.shape for key, value in before.items()}:
        raise ConfigError("the app returned arrays of other names or shapes than it was given; they cannot be packed")
    update = {
        key: after[key].to(old.dtype) - old if old.is_floating_point() else after[key].to(old.dtype)
        for key, old in before.items()
    }
    held = context.state.array_records.get(KEPT)
    memory = decode(held[PACKED].data, LIMIT) if held is not None else {}
    try:
        packed, memory = apply(chain, update, memory, int(cast(int, told["seed"])))
    except NotFinite:
        raise NotFinite("the app's update holds values that are not finite; it was not sent") from None
    if memory:
        context.state[KEPT] = _bytes(memory)
    reply.content = RecordDict({**reply.content, name: _bytes(packed)})
    return reply


def _only(content: RecordDict) -> tuple[str, ArrayRecord]:
    """The one record of arrays.

    Raises:
        BadMessage: none, or several.
    """
    found = list(content.array_records.items())
    if len(found) != 1:
        raise BadMessage(f"{len(found)} records of arrays; expected one, as FedAvg sends")
    return found[0]


def _tree(record: ArrayRecord) -> Weights:
    return {name: torch.tensor(array.numpy()) for name, array in record.items()}


def _record(tree: Weights) -> ArrayRecord:
    return ArrayRecord({name: Array(value.numpy()) for name, value in tree.items()})


def _bytes(value: object) -> ArrayRecord:
    raw = bytes(encode(value))
    return ArrayRecord({PACKED: Array("uint8", (len(raw),), STYPE, raw)})
