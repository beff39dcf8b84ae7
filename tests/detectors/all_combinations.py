"""Builds, trains by one step and runs every legal sample of a small structural space. Not a test.

    python tests/detectors/all_combinations.py [SIDE] [PART OF PARTS]

The suite does this for a covering few. SIDE is of the pictures, in pixels (160); `160 2 4` does the
second quarter. Prints a line for each sample that fails, and exits with their number.
"""

import math
import sys
import time

import torch

from search_spaces.structural import StructuralSpace
from smnas.encoding import Encoding
from smnas.records import Sample, identity

SHARES = ((0.02, 0.02, 0.12, 0.12), (0.2, 0.04, 0.4, 0.24), (0.5, 0.1, 0.9, 0.5), (0, 0, 1, 1))


def problems(space: StructuralSpace, sample: Sample, side: int) -> str:
    """What is wrong with the detector of a sample; empty if nothing is."""
    torch.manual_seed(0)
    detector = space.freeze(sample)
    image = torch.rand(3, side, side)
    boxes = torch.tensor(SHARES) * side
    losses = detector([image], [{"boxes": boxes, "labels": torch.tensor([1, 2, 3, 1])}])
    total = sum(losses.values())
    total.backward()
    total = total.item()
    idle = [
        name
        for name, p in detector.named_parameters()
        if p.grad is None or not p.grad.isfinite().all() or not p.grad.any()
    ]
    with torch.no_grad():
        (found,) = detector.eval()([image])
    if not math.isfinite(total) or idle or set(found) != {"boxes", "labels", "scores"}:
        return f"loss {total}, no gradient in {idle}, detections {set(found)}"
    return ""


def main(side: int = 160, part: int = 1, parts: int = 1) -> int:
    torch.set_num_threads(1)
    space = StructuralSpace(num_classes=3, input_sizes=(f"{side}x{side}",), head_width=64)
    encoding = Encoding.of(space)
    samples = [encoding.sample(index) for index in encoding.legal()][part - 1 :: parts]
    start, failed = time.perf_counter(), 0
    for number, sample in enumerate(samples, start=1):
        try:
            found = problems(space, sample, side)
        except Exception as error:
            found = f"{type(error).__name__}: {error}"
        if found:
            failed += 1
            print(identity(sample), found, flush=True)
        if number % 50 == 0 or number == len(samples):
            seconds = time.perf_counter() - start
            print(f"{number} of {len(samples)}, {failed} failed, {seconds:.0f} s", flush=True)
    return failed


if __name__ == "__main__":
    sys.exit(main(*map(int, sys.argv[1:])))
