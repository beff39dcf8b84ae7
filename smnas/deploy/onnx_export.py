"""A detector as an ONNX file, by torch's exporter, and the file run by ONNX Runtime.

The only module that imports onnxruntime; torch's exporter imports onnx and onnxscript.
"""

from __future__ import annotations

import json
import logging
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import onnxruntime
import torch
from torch import Tensor, nn

from smnas.deploy.graph import CELL, Graph
from smnas.deploy.saved import Category
from smnas.errors import DeployError

INPUT = "image"
OUTPUTS = ("boxes", "scores", "labels")

LARGEST_CELLS = 256
"""Of a side, where the size is dynamic: 8192 pixels."""


def export_onnx(
    detector: nn.Module,
    size: tuple[int, int],
    path: Path,
    *,
    dynamic: bool = False,
    categories: Sequence[Category] | None = None,
) -> None:
    """Writes a detector as ONNX: `image` to `boxes`, `scores`, `labels`, as `Graph` has them.

    Args:
        detector: of torchvision's parts, with its weights, on the CPU.
        size: (width, height) of the picture.
        path: of the file, which is overwritten.
        dynamic: take pictures of any size whose sides are multiples of 32 pixels, from 96 on.
        categories: kept in the file's metadata, in the order of labels.

    Raises:
        DeployError: the detector cannot be exported, or the file not be written.
    """
    graph, image = Graph(detector), torch.zeros(3, size[1], size[0])
    shapes: dict[str, Any] | None = None
    if dynamic:
        image = torch.zeros(3, *(max(3, -(-side // CELL)) * CELL for side in (size[1], size[0])))
        rows, columns = (
            torch.export.Dim(name, min=3, max=LARGEST_CELLS) for name in ("rows", "columns")
        )
        shapes = {INPUT: {1: CELL * rows, 2: CELL * columns}}
    try:
        with torch.no_grad(), _quietly():
            captured = torch.export.export(graph, (image,), dynamic_shapes=shapes, strict=False)
            program = torch.onnx.export(
                captured, dynamo=True, verbose=False, input_names=[INPUT], output_names=OUTPUTS
            )
    except Exception as error:  # whatever a part makes torch's exporter raise
        reason = next(iter(str(error).splitlines()), "")
        raise DeployError(
            f"export: torch cannot export it to ONNX: {type(error).__name__}: {reason}"
        ) from error
    assert program is not None
    about = {"input_size": "dynamic" if dynamic else f"{size[0]}x{size[1]}"}
    about["categories"] = json.dumps([dict(one) for one in categories or ()])
    program.model.metadata_props.update({f"smnas.{name}": text for name, text in about.items()})
    try:
        program.save(path)
    except OSError as error:
        raise DeployError(f"export: {path} cannot be written: {error.strerror}") from error


class OnnxDetector(nn.Module):
    """An exported file that is called as the detector that it was made of.

    Args:
        path: of the file.
        threads: CPU threads of one operator; None for ONNX Runtime's own number.

    Raises:
        DeployError: ONNX Runtime cannot load the file.
    """

    def __init__(self, path: Path, threads: int | None = None) -> None:
        super().__init__()
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        if threads:
            options.intra_op_num_threads = threads
        try:
            self._session = onnxruntime.InferenceSession(
                str(path), options, providers=["CPUExecutionProvider"]
            )
        except Exception as error:  # its classes of errors are not public
            raise DeployError(f"export: ONNX Runtime cannot load {path}: {error}") from error

    def forward(self, images: list[Tensor]) -> list[dict[str, Tensor]]:
        """Detections of each picture."""
        return [self._look(image) for image in images]

    def _look(self, image: Tensor) -> dict[str, Tensor]:
        found = self._session.run(list(OUTPUTS), {INPUT: image.cpu().numpy()})
        return {name: torch.from_numpy(value) for name, value in zip(OUTPUTS, found, strict=True)}


@contextmanager
def _quietly() -> Iterator[None]:
    """Without what torch's exporter says of its own progress and of other libraries."""
    logger = logging.getLogger("onnxscript")
    rewriter = logging.getLogger("onnx_ir")
    levels = logger.level, rewriter.level
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        logger.setLevel(logging.ERROR)
        rewriter.setLevel(logging.ERROR)
        try:
            yield
        finally:
            logger.setLevel(levels[0])
            rewriter.setLevel(levels[1])
