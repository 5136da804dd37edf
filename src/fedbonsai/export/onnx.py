"""ONNX: the network by torch's exporter, and 8-bit integers by onnxruntime's static quantization."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fedbonsai.core import Samples
from fedbonsai.errors import said
from fedbonsai.export.needs import need, quiet
from fedbonsai.export.trained import Trained
from fedbonsai.inputs import Input, parted

OUTPUT = "scores"


def to_onnx(trained: Trained, target: Path, int8: bool = False) -> str:
    """Write an ONNX file that takes any batch; in float32 of tokens rows of any length up to that of training, if it can be.

    The file's note ``length`` says which lengths it takes.

    Args:
        trained: what is exported.
        target: the file.
        int8: weights by channel and activations as 8-bit integers, ranges from the calibration samples.

    Returns:
        Why rows of tokens must be as long as in training, where they must; else nothing.

    Raises:
        Missing: onnx, onnxscript or onnxruntime are not installed.
    """
    onnx = need("onnx")
    need("onnxscript")
    fixed, notes = "", trained.notes()
    with tempfile.TemporaryDirectory() as folder, quiet():
        plain = Path(folder) / "plain.onnx"
        program, why = _program(trained, any_length=trained.tokens and not int8)
        program.save(str(plain))
        made = plain
        if int8:
            made = Path(folder) / "int8.onnx"
            _quantize(plain, made, trained.calibration, trained.model.arch.inputs)
        graph = onnx.load(str(made))
        _strip(graph)
        if trained.tokens:
            longest, takes = trained.calibration.shape[0], graph.graph.input[0].type.tensor_type.shape.dim[1]
            notes["length"] = f"2 to {longest}" if takes.dim_param else str(longest)
            if not takes.dim_param:
                why = "ranges of 8 bits are of one length" if int8 else why or "torch took its length for a constant"
                fixed = f"the file takes rows of exactly {longest} tokens: {why}"
        for key, value in notes.items():
            entry = graph.metadata_props.add()
            entry.key, entry.value = key, value
        onnx.save(graph, str(target))
    return fixed


RECURRENT = ("gru", "lstm")  # operations of which torch's exporter has other kernels for any length


@contextmanager
def _kernels_chosen_anew() -> Generator[None]:
    """Let torch choose kernels of recurrent layers anew, inside and after.

    Its exporter (2.13) puts others in their place for a while, and forgets that the choice of before is kept: a second export
    would write a fixed length. Read in torch/export/_patches.py and torch/_ops.py. The loop over steps is compiled for the
    length that it saw first, also that of another network, and compiled again for any length once that is forgotten.
    """

    def forget() -> None:
        for name in RECURRENT:
            getattr(getattr(torch.ops.aten, name).input, "_dispatch_cache", dict[Any, Any]()).clear()

    forget()
    torch.compiler.reset()
    try:
        yield
    finally:
        forget()


def _program(trained: Trained, any_length: bool) -> tuple[Any, str]:
    """The exported program, and why it could not be written for any length where that was wanted."""
    network, samples = trained.single(), trained.calibration
    batch: dict[int, Any] = {0: torch.export.Dim("batch")}

    inputs = trained.model.arch.inputs
    given = parted(inputs, samples.x[:2]) if inputs else {}

    def written(dynamic: dict[int, Any]) -> Any:
        with _kernels_chosen_anew():
            return torch.onnx.export(
                network,
                () if inputs else (samples.x[:2],),
                kwargs=given,
                dynamo=True,
                dynamic_shapes=dict.fromkeys(given, dynamic) if inputs else (dynamic,),
                input_names=list(given) or ["images" if trained.pictures else "inputs"],
                output_names=[OUTPUT],
                verbose=False,
            )

    why = ""
    if any_length and samples.shape[0] > 2:
        try:
            return written(batch | {1: torch.export.Dim("length", min=2, max=samples.shape[0])}), ""
        except Exception as error:  # a network of one's own may need its length
            why = said(error.__cause__ or error, 200)
    with trained.followed():
        return written(batch), why


def _quantize(plain: Path, target: Path, calibration: Samples, inputs: Sequence[Input]) -> None:
    tools, shapes = need("onnxruntime.quantization"), need("onnxruntime.quantization.shape_inference")
    graph = need("onnx").load(str(plain)).graph
    given = graph.input[0].name
    attends = any(node.op_type == "Softmax" for node in graph.node)  # what masks its scores has no range of 8 bits

    class Reader(tools.CalibrationDataReader):  # type: ignore[misc]
        """The calibration samples, 32 at a time."""

        def __init__(self) -> None:
            self.batches: Iterator[Tensor] = iter(calibration.x.split(32))

        def get_next(self) -> dict[str, Any] | None:
            batch = next(self.batches, None)
            return None if batch is None else _named(inputs, given, batch)

    ready = plain.with_name("ready.onnx")
    shapes.quant_pre_process(str(plain), str(ready))
    kind = tools.QuantType.QInt8
    tools.quantize_static(
        str(ready),
        str(target),
        Reader(),
        quant_format=tools.QuantFormat.QDQ,
        op_types_to_quantize=["Conv", "Gemm", "MatMul"] if attends else None,
        per_channel=True,
        activation_type=kind,
        weight_type=kind,
    )


def _named(inputs: Sequence[Input], given: str, batch: Tensor) -> dict[str, Any]:
    """What a session is fed: a batch by the name of its one input, or each of several inputs by its own."""
    parts = parted(inputs, batch) if inputs else {given: batch}
    return {name: value.numpy() for name, value in parts.items()}


def _strip(graph: Any) -> None:
    """Without the exporter's stack traces, which can be half of a small network's file."""
    graph.doc_string = ""
    for function in graph.functions:
        function.doc_string = ""
    for part in (graph.graph, *graph.functions):
        for node in part.node:
            node.doc_string = ""
            del node.metadata_props[:]
        for value in getattr(part, "value_info", ()):
            del value.metadata_props[:]
        del part.metadata_props[:]


class OnnxRunner:
    """An ONNX file in onnxruntime, on one thread of the CPU."""

    def __init__(self, file: Path) -> None:
        runtime = need("onnxruntime")
        options = runtime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        options.log_severity_level = 3
        self._session = runtime.InferenceSession(file.read_bytes(), options, providers=["CPUExecutionProvider"])
        notes = json.loads(self._session.get_modelmeta().custom_metadata_map.get("inputs", "[]"))
        self._inputs = [Input(each["name"], tuple(each["shape"]), each["type"] == "int64") for each in notes]

    def __call__(self, inputs: Tensor) -> Tensor:
        """Scores of some inputs; of several they stand side by side in a row."""
        given = self._session.get_inputs()[0].name
        return torch.from_numpy(self._session.run(None, _named(self._inputs, given, inputs))[0])
