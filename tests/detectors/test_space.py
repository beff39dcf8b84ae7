"""Finding spaces by name, and freezing them, on a space of one convolution."""

import sys
from textwrap import dedent

import pytest
import torch
from torch import nn

from smnas.detectors.space import DetectorSpace, load_space
from smnas.detectors.torchvision import ParametrizedModule
from smnas.encoding import Encoding
from smnas.errors import SpaceError

BUILT = []


class Part(nn.Module):
    def __init__(self, width: int, *, even: bool = False) -> None:
        super().__init__()
        BUILT.append(width)
        self.width = width
        self.linear = nn.Linear(1, width)
        self.even = even


class MutablePart(ParametrizedModule, Part, wraps=Part):
    pass


class Toy(DetectorSpace):
    def __init__(self, widths: tuple[int, ...] = (2, 3, 4), *, odd: bool = True) -> None:
        super().__init__()
        width = self.choice("width", widths)
        kind = self.choice("kind", ("a", "b"))
        self.rule("no b of 4", (width != 4) | (kind != "b"))
        part = MutablePart(width, even=kind == "b")
        self.detector = nn.Sequential(part, nn.Conv2d(part.width, 1, 1))
        self.odd = odd


class Heir(Toy):
    pass


def test_the_default_is_the_first_of_everything():
    space = Toy()
    assert space.detector[0].width == 2
    assert [choice.label for choice in Encoding.of(space).choices] == ["width", "kind"]


def test_a_default_may_stand_anywhere():
    class Late(DetectorSpace):
        def __init__(self) -> None:
            super().__init__()
            width = self.choice("width", (2, 3, 4), default=3)
            self.rule("not narrow", width > 2)
            self.detector = nn.Sequential(MutablePart(width))

    space = Late()
    assert space.detector[0].width == 3
    assert Encoding.of(space).choices[0].options == (2, 3, 4)


def test_only_the_default_is_built():
    BUILT.clear()
    space = Toy()
    assert BUILT == [2]
    space.freeze({"width": 3, "kind": "b"})
    assert BUILT == [2, 3]


def test_freezing_gives_plain_modules():
    detector = Toy().freeze({"width": 3, "kind": "b"})
    assert type(detector[0]) is Part
    assert detector[0].linear.out_features == detector[1].in_channels == 3
    assert detector[0].even is True


def test_freezing_keeps_the_spaces_arguments():
    detector = Heir(widths=(7, 8)).freeze({"width": 8, "kind": "a"})
    assert detector[0].linear.out_features == 8


def test_freezing_starts_from_torchs_generator():
    space, sample = Toy(), {"width": 3, "kind": "a"}
    torch.manual_seed(0)
    first = space.freeze(sample)
    second = space.freeze(sample)
    torch.manual_seed(0)
    again = space.freeze(sample)
    assert torch.equal(first[0].linear.weight, again[0].linear.weight)
    assert not torch.equal(first[0].linear.weight, second[0].linear.weight)


@pytest.mark.parametrize(
    ("sample", "message"),
    [
        ({"width": 4, "kind": "b"}, "'no b of 4' does not hold"),
        ({"width": 5, "kind": "a"}, "'width': wanted one of .*2, 3, 4.*, got 5"),
        ({"width": "2", "kind": "a"}, "got '2'"),
        ({"width": 2}, "'kind' is missing"),
        ({"width": 2, "kind": "a", "widht": 2}, "no choice named 'widht'; did you mean 'width'"),
    ],
)
def test_foreign_samples(sample, message):
    with pytest.raises(SpaceError, match=message):
        Toy().freeze(sample)


MODULE = """
    from nni.nas.nn.pytorch import ModelSpace
    from smnas.detectors.space import DetectorSpace
    from torch import nn

    class Mine(DetectorSpace):
        def __init__(self, widths, depth=1):
            super().__init__()
            if depth < 1:
                raise ValueError(f"depth: wanted at least 1, got {depth}")
            self.choice("width", widths)
            self.detector = nn.Identity()

    class Heir(Mine):
        pass

    class Open(Mine):
        def __init__(self, **others):
            super().__init__(**others)

    class Broken(DetectorSpace):
        def __init__(self):
            super().__init__()
            width = self.choice("width", (1, 2))
            self.rule("never the default", width != 1)

    class Other:
        pass

    value = 5
"""


@pytest.fixture
def module(tmp_path, monkeypatch):
    (tmp_path / "my_spaces.py").write_text(dedent(MODULE))
    (tmp_path / "ill_space.py").write_text("import torch\nimport no_such_library\n")
    (tmp_path / "syntax_space.py").write_text("class Mine(:\n")
    monkeypatch.syspath_prepend(tmp_path)
    yield "my_spaces"
    for name in ("my_spaces", "ill_space", "syntax_space"):
        sys.modules.pop(name, None)


@pytest.mark.parametrize("name", ["Mine", "Heir", "Open"])
def test_finds_a_space_and_hands_it_its_arguments(module, name):
    space = load_space(f"{module}:{name}", {"widths": [1, 2, 3]})
    assert type(space).__name__ == name
    assert Encoding.of(space).size == 3


@pytest.mark.parametrize(
    "reference",
    ["", "my_spaces", "my_spaces:", ":Mine", "my_spaces.py:Mine", "a:b:c", "a..b:C", "a b:C"],
)
def test_malformed_references(module, reference):
    if reference == "my_spaces.py:Mine":
        with pytest.raises(SpaceError, match="cannot import my_spaces.py"):
            load_space(reference, {})
    else:
        with pytest.raises(SpaceError, match="wanted package.module:Class, got"):
            load_space(reference, {})


@pytest.mark.parametrize(
    ("reference", "message"),
    [
        ("no_such_module:Mine", "cannot import no_such_module: ModuleNotFoundError"),
        ("ill_space:Mine", "cannot import ill_space: .*no_such_library"),
        ("syntax_space:Mine", "cannot import syntax_space: SyntaxError.*line 1"),
        ("my_spaces:Min", "my_spaces has no 'Min'; did you mean 'Mine'"),
        ("my_spaces:value", "wanted a subclass of NNI's ModelSpace, got 5"),
        ("my_spaces:Other", "wanted a subclass of NNI's ModelSpace"),
        ("my_spaces:ModelSpace", "wanted a subclass of NNI's ModelSpace"),
    ],
)
def test_references_that_lead_nowhere(module, reference, message):
    with pytest.raises(SpaceError, match=message):
        load_space(reference, {})


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("Mine", {"widhts": [1]}, "no argument 'widhts'; did you mean 'widths'"),
        ("Heir", {"widths": [1], "zzz": 1}, "no argument 'zzz'; known: depth, widths"),
        ("Open", {"widths": [1], "zzz": 1}, "zzz"),
        ("Mine", {}, "widths"),
        ("Mine", {"widths": [1], "depth": 0}, "depth: wanted at least 1, got 0"),
        ("Mine", {"widths": 5}, "not iterable"),
        ("Broken", {}, "never the default"),
    ],
)
def test_arguments_that_are_refused(module, name, arguments, message):
    with pytest.raises(SpaceError, match=f"{module}:{name}.*{message}"):
        load_space(f"{module}:{name}", arguments)
