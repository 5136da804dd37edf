"""FedGKT: small networks on the devices, a larger one on the server, and knowledge passed between them as logits.

He, Annavaram and Avestimehr, "Group Knowledge Transfer: Federated Learning of Large CNNs at the Edge", NeurIPS 2020.
The task ``train`` is the client's half of a round (train, then extract), ``round`` the server's. The configured network
is cut in two: its stem with a head of its own is the client's, what follows the stem is the server's.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import field, replace
from math import nan
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fedbonsai import training, tree, work
from fedbonsai.arch import Arch, network
from fedbonsai.core import Client, Device, Fleet, Memory, Samples, task
from fedbonsai.errors import ConfigError, Forgotten, Unanswered
from fedbonsai.methods.registry import method
from fedbonsai.model import Model, cached_module
from fedbonsai.stages.cut import cuttable
from fedbonsai.stages.needs import classes_needed
from fedbonsai.stages.sampling import cohort
from fedbonsai.training.optimizers import SGD, Optimizer
from fedbonsai.wire import message
from fedbonsai.zoo.parts import chain

BATCH = 512  # samples of a forward pass alone
GRID = 4  # a convolutional stem's output is averaged to 4x4 before the client's classifier


@message("fedgkt/train@1")
class Train:
    """How to train; the client network at a first meeting, the server's logits for this client's samples later.

    ``weights`` is empty once the client has its own; ``logits`` is [samples, classes] in the order of the client's
    training samples, [0] before there are any.
    """

    arch: Arch
    weights: Mapping[str, Tensor]
    logits: Tensor
    sgd: Optimizer
    alpha: float
    temperature: float


@message("fedgkt/knowledge@1")
class Knowledge:
    """Of each training sample the features, the client's logits and the label; the extractor is for evaluation only."""

    features: Tensor
    logits: Tensor
    labels: Tensor
    extractor: Mapping[str, Tensor]
    loss: float


@message("fedgkt/state@1")
class State:
    """``model`` is the mean extractor with the server's network; logits (the server's) and extractors by device id."""

    model: Model
    client: Model  # as every client starts
    logits: Mapping[str, Tensor]
    extractors: Mapping[str, Mapping[str, Tensor]]
    seed: int
    device: str
    loss: float = nan
    server_loss: float = nan


@task("fedgkt/train")
def train(request: Train, me: Client, memory: Memory) -> tuple[Knowledge, Memory]:
    """Train the client's network towards labels and the server's logits, then extract what the server learns from.

    Raises:
        Forgotten: the server believes that this client has its network, and it has not.
        NotFinite: training gave values that are NaN or infinite; the client counts as silent, its memory stays.
    """
    weights: tree.Tree = memory["weights"] if "weights" in memory and not request.weights else request.weights
    if not weights:
        raise Forgotten("this client has lost its network")
    model = Model(request.arch, weights)
    labels, x = me.train.y, me.train.x
    loss, targets = None, labels
    if len(request.logits):
        loss, targets = guided(request.alpha, request.temperature), taught(labels, request.logits)
    trained = training.train(model, replace(me, train=Samples(x, targets)), request.sgd, loss=loss).finite()
    net = cached_module(model.replace(trained.weights), me.device).module
    features = outputs(net.get_submodule("stem"), x, me.device)
    scores = outputs(net.get_submodule("head"), features, me.device)
    work.report(model, x.shape[1:], forward=len(x), passes=-(-len(x) // BATCH), batch=min(BATCH, len(x)))
    extractor = {name: value for name, value in trained.weights.items() if name.startswith("stem.")}
    return Knowledge(features, scores, labels, extractor, trained.loss), {"weights": trained.weights}


def taught(labels: Tensor, teacher: Tensor) -> Tensor:
    """Targets of `guided`: the label of each sample and the logits of its teacher, [samples, 1 + classes]."""
    return torch.cat([labels[:, None].to(teacher.dtype), teacher], 1)


def guided(alpha: float, temperature: float) -> training.OwnLoss:
    """`distillation` for samples whose targets are `taught`."""

    def value(made: training.Made, seen: Sequence[training.Made], y: Tensor, held: tree.Tree) -> Tensor:
        return distillation(made[0], y[:, 0].long(), y[:, 1:], alpha, temperature)

    return training.OwnLoss(("fedgkt", alpha, temperature), training.outputs, value)


def distillation(scores: Tensor, labels: Tensor, teacher: Tensor, alpha: float, temperature: float) -> Tensor:
    """CE(scores, labels) + alpha T^2 KL(softmax(teacher / T) || softmax(scores / T)), mean over samples.

    Args:
        scores: logits of the network that learns, [samples, classes].
        labels: [samples].
        teacher: logits of the network that teaches, [samples, classes].
        alpha: weight of the second term.
        temperature: T.
    """
    learns, teaches = (F.log_softmax(logits / temperature, dim=1) for logits in (scores, teacher))
    divergence = (teaches.exp() * (teaches - learns)).sum() / len(scores)  # F.kl_div, which torch.func does not have
    return F.cross_entropy(scores, labels) + alpha * temperature**2 * divergence


def outputs(net: nn.Module, x: Tensor, device: str, batch: int = BATCH) -> Tensor:
    """What a network gives in evaluation mode, on the CPU."""
    net.eval()
    with torch.no_grad():
        return torch.cat([net(part.to(device)).cpu() for part in x.split(batch)])


@network("fedgkt-client")
def client_network(of: str, options: Mapping[str, Any], classes: int) -> nn.Module:
    """The stem of another network and a linear classifier of its own behind it.

    Raises:
        ConfigError: a stem without weights.
    """
    stem = Arch(of, options).build().get_submodule("stem")
    layers = [layer for layer in stem.modules() if isinstance(layer, nn.Conv2d | nn.Linear)]
    if not layers:
        raise ConfigError(f"fedgkt: the stem of {of!r} with {dict(options)} learns nothing; choose another network")
    if isinstance(layers[-1], nn.Conv2d):
        # averaged to one value per channel, a single convolution would make too weak a teacher
        head = chain(pool=nn.AdaptiveAvgPool2d(GRID), flatten=nn.Flatten())
        width = layers[-1].out_channels * GRID**2
    else:
        head, width = chain(), layers[-1].out_features
    return chain(stem=stem, head=chain(shape=head, classifier=nn.Linear(width, classes)))


@method("fedgkt")
class FedGKT:
    """Small client networks and a larger server network that teach each other by logits."""

    lacks: ClassVar = {"privacy": "devices send what their layers make of every single sample, and its target"}

    optimizer: Optimizer = field(default_factory=SGD)
    """Training of a client's network."""
    server: SGD = field(default_factory=SGD)
    """Training of the server's network on the features of all who answered."""
    alpha: float = 1.0
    """Weight of the distillation terms, of the clients' and of the server's."""
    temperature: float = 3.0
    """T: logits are divided by it where they teach."""
    cohort: int = 0
    """Devices asked in a round; 0 means all."""

    def __post_init__(self) -> None:
        """Refuse values that cannot be meant."""
        if self.alpha < 0 or not self.temperature > 0:
            raise ValueError(f"alpha = {self.alpha}, temperature = {self.temperature}: expected >= 0 and > 0")

    def begin(self, model: Model, fleet: Fleet, server: Client) -> State:
        """Cut the network in two and draw the client's head; nothing is sent yet.

        Raises:
            ConfigError: the network is not made of stem, features and classifier.
        """
        cuttable(model, server.train.blank(2), "fedgkt")
        classes_needed(model, "fedgkt", "teaches by the scores of all classes")
        classes = len(model.weights["classifier.weight"])
        arch = Arch("fedgkt-client", {"of": model.arch.name, "options": model.arch.options, "classes": classes})
        drawn = Model.init(arch, tree.seed_of(server.seed, "client network", -1, 0))
        client = drawn.replace({name: model.weights.get(name, value) for name, value in drawn.weights.items()})
        return State(model, client, {}, {}, server.seed, server.device)

    def round(self, state: State, t: int, fleet: Fleet) -> State:
        """Clients train and upload; the server trains on all of it and takes down its logits for the next round."""
        asked = cohort(fleet.devices, self.cohort, state.seed, t)
        got = self.ask(state, asked, fleet)
        extractor, loss = tree.Mean(), 0.0
        for each in got.values():
            extractor.add(each.extractor, len(each.labels))
            loss += each.loss * len(each.labels)
        server = Model(
            Arch("back", {"of": state.model.arch.name, "options": state.model.arch.options}),
            {name: value for name, value in state.model.weights.items() if not name.startswith("stem.")},
        )
        labels = torch.cat([each.labels for each in got.values()])
        targets = taught(labels, torch.cat([each.logits for each in got.values()]))
        pool = Samples(torch.cat([each.features for each in got.values()]), targets)
        me = Client("server", tree.seed_of(state.seed, "server", t, 0), pool, pool[:0], state.device)
        trained = training.train(server, me, self.server, loss=guided(self.alpha, self.temperature))
        net = cached_module(server.replace(trained.weights), state.device).module
        new = {id: outputs(net, each.features, state.device) for id, each in got.items()}
        return replace(
            state,
            model=state.model.replace(extractor.result() | trained.weights),
            logits={**state.logits, **new},
            extractors={**state.extractors, **{id: each.extractor for id, each in got.items()}},
            loss=loss / extractor.weight,
            server_loss=trained.loss,
        )

    def ask(self, state: State, asked: list[Device], fleet: Fleet) -> dict[str, Knowledge]:
        """Knowledge by device id; who has lost its network is asked again and begins anew.

        Raises:
            Unanswered: nobody has any.
        """
        client = state.client
        begin = Train(client.arch, client.weights, torch.empty(0), self.optimizer, self.alpha, self.temperature)
        send = {
            device: replace(begin, weights={}, logits=state.logits[device.id]) if device.id in state.logits else begin
            for device in asked
        }
        answers = fleet.ask(train, send, at_least=0)
        got = {answer.device.id: answer.value for answer in answers}
        if again := [device for device, silence in answers.silent.items() if silence.forgot]:
            got |= {a.device.id: a.value for a in fleet.ask(train, dict.fromkeys(again, begin), at_least=0)}
        if not got:
            reasons = "; ".join(f"{device.id}: {silence.reason}" for device, silence in answers.silent.items())
            raise Unanswered(f"no client has trained ({reasons or 'nobody was asked'})")
        return got

    def model(self, state: State) -> Model:
        """The server's network behind the mean of the clients' extractors, as one ordinary network."""
        return state.model

    def own(self, state: State, id: str) -> Model:
        """The server's network behind one client's own extractor, which is what FedGKT itself would evaluate."""
        return state.model.replace({**state.model.weights, **state.extractors[id]})

    def metrics(self, state: State) -> Mapping[str, float]:
        """Mean training losses of the last round, distillation included: of the clients and of the server."""
        return {"train_loss": state.loss, "server_loss": state.server_loss}
