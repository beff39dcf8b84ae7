from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from smnas.errors import JournalError, RunError
from smnas.journal import FILE_NAME, Asked, Journal, Told, read
from smnas.records import Candidate, Failed, Measured

HEADER = {"name": "test", "experiment": {"space": "a:B", "seed": 0}}
FIRST = Candidate(0, "structural", {"x": 1}, "baseline")
SECOND = Candidate(1, "structural", {"x": 2}, "random")


def ticks() -> Callable[[], float]:
    seconds: Iterator[int] = iter(range(1000))
    return lambda: float(next(seconds))


def write(path: Path) -> None:
    journal = Journal.open(path, HEADER, ticks())
    journal.asked(FIRST)
    journal.asked(SECOND)
    journal.told(1, Measured({"map": 0.5}, {"device": "cpu"}))
    journal.close()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    write(tmp_path / FILE_NAME)
    return tmp_path / FILE_NAME


def test_what_was_written_is_read(path: Path) -> None:
    history = read(path)
    assert history.header["name"] == "test" and history.header["schema"] == 1
    assert history.events == (
        Asked(FIRST, 1.0),
        Asked(SECOND, 2.0),
        Told(1, Measured({"map": 0.5}, {"device": "cpu"}), 3.0),
    )
    assert [(t.candidate.id, t.outcome is None) for t in history.trials()] == [
        (0, True),
        (1, False),
    ]
    assert history.pending() == [FIRST]
    assert read(path.parent) == history


def test_reopening_appends(path: Path) -> None:
    journal = Journal.open(path, HEADER)
    assert journal.history.pending() == [FIRST]
    journal.told(0, Failed("crash", "boom"))
    journal.close()
    assert len(path.read_bytes().splitlines()) == 5
    assert read(path).pending() == []


def test_cut_at_every_byte_loses_at_most_the_line_being_written(path: Path) -> None:
    """As if killed at any moment of any write: reopening works, and whole lines survive."""
    whole = path.read_bytes()
    for cut in range(len(whole)):
        path.write_bytes(whole[:cut])
        journal = Journal.open(path, HEADER)
        expected = max(0, whole[:cut].count(b"\n") - 1)
        assert len(journal.history.events) == expected, cut
        journal.close()
        assert path.read_bytes().endswith(b"\n")


def test_a_torn_line_is_reported(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with path.open("ab") as file:
        file.write(b'{"event":"asked","ti')
    assert len(read(path).events) == 3
    assert "dropped a torn last line of 20 bytes" in caplog.text


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b"not json", ":3: wanted a JSON line, got b'not json'"),
        (b"[1]", ":3: wanted a JSON object"),
        (b'{"event":"other"}', ":3: corrupt event: .*wanted asked or outcome"),
        (b'{"event":"asked"}', ":3: corrupt event"),
        (b'{"event":"asked","time":1,"candidate":5}', ":3: corrupt event"),
        (b'{"event":"outcome","time":1,"id":0,"outcome":{"state":"?"}}', ":3: corrupt event"),
        (
            b'{"event":"outcome","time":1,"id":9,"outcome":'
            b'{"state":"measured","metrics":{},"info":{}}}',
            ":3: candidate 9 was told but never asked",
        ),
    ],
)
def test_a_corrupt_line_in_the_middle_is_an_error(path: Path, line: bytes, message: str) -> None:
    lines = path.read_bytes().splitlines()
    before = b"\n".join([*lines[:2], line, *lines[3:]]) + b"\n"
    path.write_bytes(before)
    with pytest.raises(JournalError, match=message):
        read(path)
    with pytest.raises(JournalError, match=message):
        Journal.open(path, HEADER)
    assert path.read_bytes() == before


def test_impossible_orders_are_errors(path: Path) -> None:
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join([*lines, lines[3]]))
    with pytest.raises(JournalError, match=":5: candidate 1 was told twice"):
        read(path)
    path.write_bytes(b"".join([*lines, lines[1]]))
    with pytest.raises(JournalError, match=":5: candidate 0 asked twice"):
        read(path)


def test_another_experiment_is_refused_and_nothing_is_touched(path: Path) -> None:
    before = path.read_bytes()
    other = {"name": "test", "experiment": {"space": "a:B", "seed": 1}}
    with pytest.raises(JournalError, match="another experiment: seed: it has 0, this one has 1"):
        Journal.open(path, other)
    assert path.read_bytes() == before


def test_a_new_schema_is_refused(path: Path) -> None:
    lines = path.read_bytes().splitlines(keepends=True)
    header = json.loads(lines[0]) | {"schema": 99}
    path.write_bytes(json.dumps(header).encode() + b"\n" + b"".join(lines[1:]))
    with pytest.raises(JournalError, match=":1: wanted schema 1, got 99"):
        read(path)


def test_a_file_that_is_no_journal(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="no journal at"):
        read(tmp_path)
    (tmp_path / FILE_NAME).write_text("")
    with pytest.raises(JournalError, match="wanted a header line, got an empty file"):
        read(tmp_path)
    (tmp_path / FILE_NAME).write_text('{"event":"asked"}\n')
    with pytest.raises(JournalError, match=":1: wanted a header, got event 'asked'"):
        read(tmp_path)


def test_a_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match="cannot be written"):
        Journal.open(tmp_path / "file" / FILE_NAME, HEADER)


def test_nan_is_never_written(path: Path) -> None:
    journal = Journal.open(path, HEADER)
    before = path.read_bytes()
    with pytest.raises(ValueError, match="JSON compliant"):
        journal.told(0, Measured({"map": 0.1}, {"loss": float("nan")}))
    assert path.read_bytes() == before
    journal.close()
