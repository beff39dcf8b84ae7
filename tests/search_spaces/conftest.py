"""These tests look into torchvision's detectors: `auto` is torchvision here, also where detectron2
is installed. `tests/detectors/detectron2` holds one library against the other.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from smnas.detectors import components


@pytest.fixture(autouse=True, scope="module")
def _torchvision() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(components, "_has_detectron2", lambda: False)
        yield
