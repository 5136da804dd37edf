"""The formats by name: what writes a file, and what runs it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from safetensors import torch as tensors

from fedbonsai.errors import ConfigError
from fedbonsai.export.compact import load, save
from fedbonsai.export.executorch import ExecutorchRunner, to_executorch
from fedbonsai.export.onnx import OnnxRunner, to_onnx
from fedbonsai.export.parity import Scores
from fedbonsai.export.trained import Trained


@dataclass(frozen=True)
class Format:
    """A file format: its ending, how a file of it is written (float32 or 8-bit integers), and how it is run.

    Writing gives what the file cannot do that others of its format can, in words; empty where nothing.
    """

    ending: str
    write: Callable[[Trained, Path, bool], str]
    runner: Callable[[Trained, Path], Scores]
    int8: bool = True


def _safetensors(trained: Trained, target: Path, int8: bool) -> str:
    if int8:
        raise ConfigError("safetensors keeps weights as they are; for 8-bit weights use onnx, executorch or compact")
    weights = {name: value.contiguous() for name, value in trained.model.weights.items()}
    target.write_bytes(tensors.save(weights, trained.notes()))
    return ""


def _reloaded(trained: Trained, file: Path) -> Scores:
    return trained.model.replace(tensors.load(file.read_bytes())).build().eval()


def _compact(trained: Trained, target: Path, int8: bool) -> str:
    save(trained.model, target, "int8" if int8 else "fp32", trained.notes())
    return ""


FORMATS = {
    "onnx": Format("onnx", to_onnx, lambda _, file: OnnxRunner(file)),
    "executorch": Format("pte", to_executorch, lambda _, file: ExecutorchRunner(file)),
    "safetensors": Format("safetensors", _safetensors, _reloaded, int8=False),
    "compact": Format("bonsai", _compact, lambda _, file: load(file).build().eval()),
}


def format_named(name: str) -> Format:
    """Look a format up.

    Raises:
        ConfigError: there is no such format.
    """
    if name not in FORMATS:
        raise ConfigError(f"format {name!r} is not known; known: {', '.join(FORMATS)}")
    return FORMATS[name]
