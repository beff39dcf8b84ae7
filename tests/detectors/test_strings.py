"""The backbone string: round trips, what it says, and what it refuses."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from smnas.detectors.strings import EXPANSIONS, KINDS, BackboneString
from smnas.errors import SpaceError

E0 = "basicblock_64_1-21-21-12"
STRINGS = st.builds(
    BackboneString,
    st.sampled_from(KINDS),
    st.integers(1, 4999).map(lambda half: 2 * half),
    st.lists(st.text("12", min_size=1, max_size=9), min_size=3, max_size=6).map(tuple),
)


@settings(deadline=None)
@given(STRINGS)
def test_text_and_numbers_round_trip(string):
    assert BackboneString.parse(str(string)) == string
    numbers = (string.kind, string.base_width, string.depths, string.doublings)
    assert BackboneString.from_numbers(*numbers) == string
    assert str(BackboneString.parse(str(string))) == str(string)


@settings(deadline=None)
@given(STRINGS)
def test_numbers_agree_with_the_blocks(string):
    assert "".join(string.stages) == string.blocks
    assert sum(string.depths) == len(string.blocks)
    assert len(string.doublings) == string.blocks.count("2")
    assert all(string.blocks[index] == "2" for index in string.doublings)
    widest = string.base_width * EXPANSIONS[string.kind] * 2 ** string.blocks.count("2")
    assert string.channels[-1] == widest
    assert len(string.channels) == len(string.stages)


@settings(deadline=None)
@given(st.text("basicblock_-0123456789", max_size=30) | st.text(max_size=30))
def test_any_text_is_read_whole_or_refused(text):
    try:
        string = BackboneString.parse(text)
    except SpaceError:
        return
    assert str(string) == text


def test_fields_of_the_first_of_the_papers_zoo():
    string = BackboneString.parse(E0)
    assert string == BackboneString("basicblock", 64, ("1", "21", "21", "12"))
    assert string.blocks == "1212112"
    assert string.depths == (1, 2, 2, 2)
    assert string.doublings == (1, 3, 6)
    assert string.channels == (64, 128, 256, 512)


@pytest.mark.parametrize(
    ("text", "channels"),
    [
        ("bottleneck_64_111-2111-211111-211", (256, 512, 1024, 2048)),
        ("resnext_48_111-2111-211111-211", (192, 384, 768, 1536)),
        ("basicblock_16_2-1-1", (32, 32, 32)),
        ("bottleneck_56_211-111111111-2111111-11112111", (448, 448, 896, 1792)),
        ("basicblock_10_1-12-22-1-2-1", (10, 20, 80, 80, 160, 160)),
    ],
)
def test_channels(text, channels):
    assert BackboneString.parse(text).channels == channels


FORM = "wanted KIND_BASEWIDTH_STAGES such as 'basicblock_64_11-21-21-21'"
KIND = "wanted a block kind"
WIDTH = "wanted a base width of 2 to 9999"


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("", f"backbone string: {FORM}, got ''"),
        (None, f"backbone string: {FORM}, got None"),
        ("basicblock-64-11", f"backbone string: {FORM}, got 'basicblock-64-11'"),
        ("resnext_64_1-1-1_2", f"backbone string: {FORM}, got 'resnext_64_1-1-1_2'"),
        (
            "_64_1-1-1",
            f"'_64_1-1-1', character 1: {KIND}, got '';" " known: basicblock, bottleneck, resnext",
        ),
        (
            "basicblok_64_1-1-1",
            f"'basicblok_64_1-1-1', character 1: {KIND}, got 'basicblok';"
            " did you mean 'basicblock'?",
        ),
        ("resnext__1-1-1", f"'resnext__1-1-1', character 9: {WIDTH}, got ''"),
        ("resnext_x_1-1-1", f"'resnext_x_1-1-1', character 9: {WIDTH}, got 'x'"),
        ("resnext_064_1-1-1", f"character 9: {WIDTH}, got '064'"),
        ("resnext_-4_1-1-1", f"character 9: {WIDTH}, got '-4'"),
        ("resnext_²_1-1-1", f"character 9: {WIDTH}, got '²'"),
        ("resnext_10000_1-1-1", f"character 9: {WIDTH}, got '10000'"),
        ("basicblock_1_1-1-1", f"'basicblock_1_1-1-1', character 12: {WIDTH}, got 1"),
        ("resnext_63_1-1-1", "character 9: wanted an even base width for resnext, got 63"),
        ("basicblock_64_", "character 15: wanted 3 to 6 stages, got 1"),
        ("basicblock_64_11-21", "character 15: wanted 3 to 6 stages, got 2"),
        ("basicblock_64_1-1-1-1-1-1-1", "character 15: wanted 3 to 6 stages, got 7"),
        ("basicblock_64_-1-1", "character 15: wanted at least one block in stage 1, got none"),
        ("basicblock_64_1--1", "character 17: wanted at least one block in stage 2, got none"),
        ("basicblock_64_1-12-", "character 20: wanted at least one block in stage 3, got none"),
        ("basicblock_64_1-13-1", "character 18: wanted a block 1 or 2, got '3'"),
        ("basicblock_64_1-1-1\n", "character 20: wanted a block 1 or 2, got '\\n'"),
    ],
)
def test_what_is_wrong_and_where(text, complaint):
    with pytest.raises(SpaceError) as refusal:
        BackboneString.parse(text)
    assert str(refusal.value).endswith(complaint)


@pytest.mark.parametrize(
    ("depths", "doublings", "complaint"),
    [
        ((1, 0, 2), (), "depth of stage 2: wanted a positive integer, got 0"),
        (
            (1, 1, 1),
            (0, 3),
            "doublings: wanted different indices of blocks from 0 to 2, ascending, got [0, 3]",
        ),
        ((1, 1, 1), (1, 0), "ascending, got [1, 0]"),
        ((1, 1, 1), (1, 1), "ascending, got [1, 1]"),
        ((1, 1, 1), (-1,), "ascending, got [-1]"),
        ((1, 1), (), "character 15: wanted 3 to 6 stages, got 2"),
    ],
)
def test_numbers_out_of_range(depths, doublings, complaint):
    with pytest.raises(SpaceError) as refusal:
        BackboneString.from_numbers("basicblock", 64, depths, doublings)
    assert str(refusal.value).endswith(complaint)


@pytest.mark.parametrize("width", [True, 64.0, 0, -2, 10_000])
def test_base_width_that_is_none(width):
    with pytest.raises(SpaceError, match=WIDTH):
        BackboneString("bottleneck", width, ("1", "1", "1"))
