"""Exported detectors beside the one that they were made of: the same findings, and how long each
takes.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn
from torchvision.transforms.v2 import functional as transforms

from smnas.data.coco import CocoDataset, DataFolder, read_picture
from smnas.deploy.onnx_export import OnnxDetector
from smnas.deploy.parity import Parity, compare, on_cpu
from smnas.detectors.transform import Transform
from smnas.errors import ConfigError, DataError, DeployError
from smnas.objectives.latency import measure_latency
from smnas.quiet import QuietDevice

FEWEST_PICTURES = 20

Finding = dict[str, Tensor]

_ALONE = """
import importlib.util, sys
sys.modules.update(smnas=None, search_spaces=None, nni=None)  # not to be imported
import torch
torch.set_num_threads(1)
file, weights, pictures, out = sys.argv[1:]
spec = importlib.util.spec_from_file_location("exported", file)
module = importlib.util.module_from_spec(spec)
spec.loader.exec_module(module)
detector = module.load(weights)
with torch.inference_mode():
    found = [detector([picture])[0] for picture in torch.load(pictures)]
torch.save([{name: value.clone() for name, value in one.items()} for one in found], out)
"""


def check_pictures(data: Path, size: tuple[int, int], count: int) -> list[Tensor]:
    """Pictures of train at exactly one size: fitted into it, the rest black. Never reads val.

    Args:
        data: folder in COCO format.
        size: (width, height) in pixels.
        count: how many, evenly out of all.

    Returns:
        Float `3 x height x width` each, 0 to 1.

    Raises:
        DataError: there are fewer than `FEWEST_PICTURES`, or one cannot be read.
    """
    dataset = CocoDataset(DataFolder.open(data).train)
    files = [dataset.part.images / dataset.coco.imgs[key]["file_name"] for key in dataset.image_ids]
    if len(files) < FEWEST_PICTURES:
        raise DataError(
            f"data {data}: wanted at least {FEWEST_PICTURES} training pictures to compare"
            f" detectors on, got {len(files)}"
        )
    step = max(1, len(files) // count)
    chosen = files[::step][:count]
    return [boxed(read_picture(file, f"in {data}"), size) for file in chosen]


def boxed(picture: Image.Image, size: tuple[int, int]) -> Tensor:
    """A picture fitted into a size from the top left, float `3 x height x width`; the rest is
    black.
    """
    scale = min(wanted / side for wanted, side in zip(size, picture.size, strict=True))
    width, height = (max(1, round(side * scale)) for side in picture.size)
    whole = Image.new("RGB", size)
    whole.paste(picture.resize((width, height), Image.Resampling.BILINEAR))
    return transforms.to_dtype(transforms.pil_to_tensor(whole), torch.float32, scale=True)


def findings(detector: nn.Module, pictures: Sequence[Tensor]) -> list[Finding]:
    """What a detector finds in each picture, one at a time."""
    with torch.inference_mode():
        return [on_cpu(detector([picture])[0]) for picture in pictures]


def check_onnx(detector: nn.Module, onnx: nn.Module, pictures: Sequence[Tensor]) -> Parity:
    """An exported file against the detector.

    Raises:
        DeployError: they do not agree.
    """
    parity = compare(findings(detector, pictures), findings(onnx, pictures))
    parity.check("export: ONNX Runtime against the detector")
    return parity


def at_size(detector: nn.Module, size: tuple[int, int]) -> nn.Module:
    """The detector for pictures of another size; changes it in place."""
    model: Any = detector.model
    model.transform = Transform(f"{size[0]}x{size[1]}")
    return detector


def check_python(
    file: Path, weights: Path, detector: nn.Module, pictures: Sequence[Tensor]
) -> Parity:
    """A written file against the detector, in a process in which smnas cannot be imported.

    Raises:
        DeployError: they do not agree, or the file does not run.
    """
    with tempfile.TemporaryDirectory() as folder:
        inputs, outputs = Path(folder, "pictures.pt"), Path(folder, "found.pt")
        torch.save(list(pictures), inputs)
        words = [sys.executable, "-c", _ALONE, *map(str, (file, weights, inputs, outputs))]
        done = subprocess.run(words, capture_output=True, text=True)
        if done.returncode:
            last = (done.stderr.strip() or "no message").splitlines()[-1]
            raise DeployError(f"export: {file} does not run by itself: {last}")
        found = torch.load(outputs, weights_only=True)
    parity = compare(findings(detector, pictures), found)
    parity.check(f"export: {file} against the detector")
    return parity


def side_by_side(
    detector: nn.Module, onnx: OnnxDetector, size: tuple[int, int], threads: int, compiled: bool
) -> dict[str, Mapping[str, Any]]:
    """Latency on this CPU of the detector as it is, compiled by torch, and under ONNX Runtime.

    Args:
        detector: in evaluation mode, on the CPU.
        onnx: with the same number of threads.
        size: (width, height) of the picture.
        threads: CPU threads of one operator.
        compiled: also `torch.compile`, which takes a minute and wants a C++ compiler.

    Returns:
        `Latency.to_json` by name; where torch cannot compile the detector, its `error`.
    """
    forms: dict[str, nn.Module] = {"eager": detector, "onnxruntime": onnx}
    found: dict[str, Mapping[str, Any]] = {}
    for name, form in forms.items():
        found[name] = _latency(form, size, threads)
    if compiled:
        try:
            found["torch.compile"] = _latency(detector, size, threads, compiled=True)
        except ConfigError as error:
            found["torch.compile"] = {"error": str(error)}
    return found


def _latency(
    form: Any, size: tuple[int, int], threads: int, compiled: bool = False
) -> Mapping[str, Any]:
    options: dict[str, Any] = {"device": torch.device("cpu"), "quiet": QuietDevice("cpu")}
    return measure_latency(form, size, threads=threads, compiled=compiled, **options).to_json()
