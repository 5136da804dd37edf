"""One export from a run to a file that was tried: written, run on the whole test set, held against what was trained."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass, replace
from pathlib import Path

from fedbonsai.disk import room_for
from fedbonsai.errors import ConfigError
from fedbonsai.export.formats import format_named
from fedbonsai.export.parity import Parity, compare
from fedbonsai.export.trained import Trained
from fedbonsai.runs.run import Run
from fedbonsai.telling import doing

OWN = ("config.toml", "run.json", "split.json", "metrics.jsonl", "model.safetensors")  # files of a run


@dataclass(frozen=True)
class Exported:
    """A file, beside what it was made of.

    Attributes:
        path: of the file.
        found: the file.
        trained: the network as it was trained, in PyTorch.
        dense: the network of the configuration, untrained, in float32 and the same format.
        limit: what the file cannot do that others of its format can, in words; empty where nothing.
    """

    path: Path
    found: Parity
    trained: Parity
    dense: Parity
    limit: str

    @property
    def good(self) -> bool:
        """Whether the file may stand for the network (`Parity.good`)."""
        return self.found.good

    @property
    def size(self) -> str:
        """Its size beside that of the dense network, in words."""
        times = self.dense.bytes / self.found.bytes
        what = f"{times:.1f} times smaller than" if times >= 1.05 else f"{1 / times:.2f} times the size of"
        return f"{what} the dense network in float32"


def export(run: Run, to: str, out: str | Path | None = None, *, int8: bool = False, client: str = "") -> Exported:
    """Write a run's final model in a format that devices run, run that file, and hold it against the network.

    Args:
        run: finished.
        to: onnx, executorch, safetensors or compact.
        out: the file; None: ``model`` with the ending of the format, in the run's folder.
        int8: 8-bit integers, calibrated on the clients' training samples.
        client: whose own model, where each client has one; empty: the common one.

    Raises:
        ConfigError: no such format or client, the run has not ended, or the file cannot be written there.
        Missing: what writes the format is not installed.
    """
    form = format_named(to)
    words = ["model", *([client] if client else []), *(["int8"] if int8 else [])]
    name = f"{'-'.join(words)}.{form.ending}"
    target = Path(out) if out is not None else run.path / (f"exported.{form.ending}" if name in OWN else name)
    trained = Trained.of(run, client)
    objective = trained.model.arch.objective
    _writable(target, run.path)
    with doing(f"writing {target.name}"):
        limit = form.write(trained, target, int8)
    network = trained.network()
    with doing(f"comparing {target.name} with what was trained"):
        found = compare(target.name, target, form.runner(trained, target), network, trained.test, objective)
    with doing("the same for the dense network"), tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / f"dense.{form.ending}"
        whole = replace(trained, model=trained.dense)
        form.write(whole, file, False)
        runner = form.runner(whole, file)
        dense = compare(f"dense fp32 as {to}, untrained", file, runner, whole.network(), trained.test, objective)
    own = run.path / "model.safetensors"
    before = compare("as trained, in PyTorch", own, network, network, trained.test, objective)
    return Exported(target, found, before, dense, limit)


def _writable(target: Path, run: Path) -> None:
    """Make the folder of a file that is to be written, which must not be a file of the run itself."""
    inside = target.resolve().parent == run.resolve()
    if inside and target.name in OWN:
        raise ConfigError(f"{target} is the run's own; give another file: --out exported{target.suffix}")
    room_for(target)
