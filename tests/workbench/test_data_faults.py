"""Faults of the data readers that a review found: a bad line, a number, a name or a typo never passes in silence."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from workbench.data import sources
from workbench.data.findings import Findings
from workbench.data.layout import Layout
from workbench.data.sources import read_rows
from workbench.data.validate import Options, Report, load_pairs
from workbench.errors import DataError
from workbench.types import PreferencePair


def _load(
    path: Path, data: bytes | list[Any], drop_invalid: bool = True, limit: int | None = None, **layout: Any
) -> tuple[list[PreferencePair], Report]:
    written = data if isinstance(data, bytes) else "".join(json.dumps(row) + "\n" for row in data).encode()
    path.write_bytes(written)
    options = Options(layout=Layout(**layout), drop_invalid=drop_invalid, max_identical_fraction=1.0, limit=limit)
    return load_pairs(path, options, stop=False)


def _found(report: Report) -> dict[str, tuple[int, tuple[int, ...]]]:
    return {one.code: (one.count, one.rows) for one in report.findings}


def _texts(pairs: list[PreferencePair]) -> list[tuple[str, str, str]]:
    return [(one.prompt, one.chosen, one.rejected) for one in pairs]


# ---- csv


@pytest.mark.parametrize(("bad", "code"), [(b"b\0d", "nul"), (b"b\xffd", "not_utf8"), (b"b" * 200, "giant_row")])
@pytest.mark.parametrize(
    ("before", "after", "line"),
    [
        (b'q2,"first\n', b'\nlast",no\n', 4),  # within a quoted cell: the row must not lose a line
        (b"q2,", b',"no\nmore"\n', 3),  # a quotation mark opens on it ...
        (b'q2,"first\n', b'",no\n', 4),  # ... or closes
    ],
)
def test_a_bad_line_of_a_csv_refuses_its_whole_row_and_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, bad: bytes, code: str, before: bytes, after: bytes, line: int
) -> None:
    monkeypatch.setattr(sources, "MAX_ROW_BYTES", 100)
    head = b"prompt,chosen,rejected\nq1,a,b\n"
    data = head + before + bad + after
    pairs, report = _load(tmp_path / "r.csv", data + b"q3,c,d\nq4,e\n")
    assert _texts(pairs) == [("q1", "a", "b"), ("q3", "c", "d")]
    assert _found(report) == {code: (1, (line,)), "malformed_csv": (1, (data.count(b"\n") + 2,))}
    assert report.rows == 4
    pairs, report = _load(tmp_path / "r.csv", data + b"q3,c,d\nq4,e\n", limit=2)
    assert (_texts(pairs), report.rows) == ([("q1", "a", "b")], 2)  # the limit counts it


def test_two_bad_lines_of_a_row_are_one_and_a_bad_header_is_no_header(tmp_path: Path) -> None:
    _, report = _load(tmp_path / "r.csv", b'prompt,chosen,rejected\nq,"a\0\n\xff\n",b\n')
    assert "and 1 more lines" in next(one.message for one in report.findings if one.code == "nul")
    assert (report.rows, "not_utf8" in _found(report)) == (1, False)
    pairs, report = _load(tmp_path / "r.csv", b"prompt,chosen,rejected\xff\na,b,c\nd,e,f\n")
    assert (pairs, report.ok, _found(report)["unreadable"]) == ([], False, (1, (1,)))


def test_a_margin_of_a_csv_is_a_number_under_whatever_name(tmp_path: Path) -> None:
    data = b"prompt,chosen,rejected,gap\nq,a,b,1.5\np,a,b,\no,a,b,wide\n"
    pairs, report = _load(tmp_path / "r.csv", data, columns={"target_margin": "gap"})
    assert [one.target_margin for one in pairs] == [1.5, None]
    assert _found(report) == {"bad_margin": (1, (4,))}


# ---- names of sources


def test_a_hub_id_may_have_dots(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    monkeypatch.setattr(sources, "load_hub", lambda name: asked.append(name) or [])
    names = ["someone/orpo-mix-40k-v1.2", "someone/mix@v1.0"]
    for name in names:
        assert list(read_rows(name, Findings(name))) == []
    assert asked == names
    for name in ("gone/pairs.jsonl", "gone/pairs.jsonl.gz", "gone/pairs.csv"):
        with pytest.raises(DataError, match="no such file"):
            list(read_rows(name, Findings(name)))


def test_a_split_beside_a_folder_of_one_set_is_refused(tmp_path: Path) -> None:
    import datasets

    rows = [{"prompt": "q", "chosen": "a", "rejected": "b"}]
    for name, split in (("nameless", None), ("named", datasets.Split.TEST)):
        datasets.Dataset.from_list(rows, split=split).save_to_disk(str(tmp_path / name))
    assert len(list(read_rows(tmp_path / "named", Findings("x"), split="test"))) == 1
    for name, words in (("nameless", "has no name"), ("named", "'test' alone")):
        with pytest.raises(DataError, match=words):
            list(read_rows(tmp_path / name, Findings("x"), split="train"))
        assert len(list(read_rows(tmp_path / name, Findings("x")))) == 1
