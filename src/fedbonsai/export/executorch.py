"""ExecuTorch: a program for phones and boards, with XNNPACK's kernels, in float32 or 8-bit integers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fedbonsai.core import Samples
from fedbonsai.export.needs import need, quiet
from fedbonsai.export.trained import Trained


def to_executorch(trained: Trained, target: Path, int8: bool = False) -> str:
    """Write a ``.pte`` program that takes one input at a time, of the shape of training; recurrent layers are unrolled.

    Of a network of several inputs it takes the row in which they stand side by side.

    Args:
        trained: what is exported.
        target: the file.
        int8: symmetric 8-bit weights by channel and 8-bit activations, ranges from the calibration samples.

    Returns:
        Nothing to say.

    Raises:
        Missing: executorch is not installed.
    """
    exir = need("executorch.exir")
    kernels = need("executorch.backends.xnnpack.partition.xnnpack_partitioner")
    example = (trained.calibration.x[:1],)
    with quiet():
        network: nn.Module = trained.single()
        network = _OfRow(network) if trained.model.arch.inputs else network
        with trained.followed():
            if int8:
                network = _quantized(network, trained.calibration)
            lowered = exir.to_edge_transform_and_lower(
                torch.export.export(network, example), partitioner=[kernels.XnnpackPartitioner()]
            )
        target.write_bytes(lowered.to_executorch().buffer)
    return ""


class _OfRow(nn.Module):
    """A network of several inputs as one of the row in which they stand side by side."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, rows: Tensor) -> Tensor:
        return self.network(rows)


def _quantized(network: nn.Module, calibration: Samples) -> nn.Module:
    quantizers = need("executorch.backends.xnnpack.quantizer.xnnpack_quantizer")
    steps = need("torchao.quantization.pt2e.quantize_pt2e")
    quantizer = quantizers.XNNPACKQuantizer()
    quantizer.set_global(quantizers.get_symmetric_quantization_config(is_per_channel=True))
    example = (calibration.x[:1],)
    observed = steps.prepare_pt2e(torch.export.export(network, example).module(), quantizer)
    with torch.no_grad():
        for one in calibration.x.split(1):
            observed(one)
    return steps.convert_pt2e(observed)


class ExecutorchRunner:
    """A ``.pte`` program in ExecuTorch's runtime."""

    def __init__(self, file: Path) -> None:
        runtime = need("executorch.runtime").Runtime.get()
        self._program = runtime.load_program(str(file))  # must outlive its method
        self._method: Any = self._program.load_method("forward")

    def __call__(self, inputs: Tensor) -> Tensor:
        """Scores of some inputs, one after another."""
        return torch.cat([self._method.execute([one])[0].clone() for one in inputs.split(1)])
