"""Faults of the data readers that a review found: a bad line, a number, a name or a typo never passes in silence."""

from __future__ import annotations

import json
import random
import re
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest

from workbench.cli_data_request import _layout, slug
from workbench.data import sources
from workbench.data.check_drop import drop_into
from workbench.data.findings import Findings
from workbench.data.layout import Layout, check_layout, held_out_layout
from workbench.data.pairing import choose
from workbench.data.sources import read_rows
from workbench.data.validate import Options, Report, load_pairs, load_prompts
from workbench.errors import ConfigError, DataError
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
    options = Options(layout=Layout(columns={"target_margin": "gap"}), drop_invalid=True)
    drop_into(tmp_path / "r.csv", options, tmp_path / "kept.jsonl")
    assert load_pairs(tmp_path / "kept.jsonl", options)[0][0].target_margin == 1.5


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


# ---- labels, rules and the layout of the command line


def test_minus_100_is_a_strength_but_in_helpsteer2(tmp_path: Path) -> None:
    pair = {"prompt": "q", "response_1": "a", "response_2": "b"}
    rows = [
        pair | {"annotator": "ann", "preference_strength": -100},
        pair | {"prompt": "p", "preference_strength": -100},
    ]
    pairs, _ = _load(tmp_path / "r.jsonl", rows)
    assert [(one.chosen, len(one.annotations)) for one in pairs] == [("a", 1), ("a", 0)]
    unprocessed = [{"strength": one} for one in (-100, 2)]
    pairs, report = _load(tmp_path / "r.jsonl", [pair | {"all_preferences_unprocessed": unprocessed}])
    assert [(one.chosen, len(one.annotations)) for one in pairs] == [("b", 1)]
    assert report.pairing is not None
    assert report.pairing["counts"]["tie_labels"] == 1


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{pairing: best-vs-worst}", "pairing: Input should be 'best_vs_worst'"),
        ("{margins: yes}", "margins: Input should be 'none' or 'score_difference', got 'True'"),
        ("{margin_scale: 2.0}", "margin_scale: has no effect"),
        ("{columns: {question: q}}", "columns.question: no such column is read"),
        ("{paring: all}", "no field paring; the fields are columns, format"),
        ("all", "got 'all', expected {format"),
    ],
)
def test_a_layout_option_is_checked_as_the_config_is(text: str, words: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(words)):
        _layout(text)


def test_a_layout_option_is_read_and_no_rule_is_made_up() -> None:
    assert _layout("{pairing: all, rating: {a: 1.0}}") == Layout(pairing="all", rating={"a": 1.0})
    with pytest.raises(ConfigError, match="got 'best-vs-worst', expected best_vs_worst"):
        choose([1, 2], "best-vs-worst", 0, lambda count: 0)  # type: ignore[arg-type]


@pytest.mark.parametrize("pairing", ["best_vs_random", "best_vs_worst"])
def test_rated_rows_make_the_same_pairs_in_any_order(tmp_path: Path, pairing: str) -> None:
    rows = [
        {"prompt": f"q{at}", "response": f"{name}{at}", "score": score}
        for at in range(12)
        for name, score in zip("abcdef", (3, 3, 2, 1.5, 1, 1), strict=True)
    ]
    one, _ = _load(tmp_path / "r.jsonl", rows, pairing=pairing)
    for seed in range(3):
        other, _ = _load(tmp_path / "r.jsonl", random.Random(seed).sample(rows, len(rows)), pairing=pairing)
        assert set(_texts(other)) == set(_texts(one))
    assert len({pair.chosen[0] for pair in one}) == 2


# ---- columns and ratings


def test_a_held_out_source_may_do_without_a_mapped_margin() -> None:
    columns = {"prompt": "question", "target_margin": "gap", "split": "part"}
    row = {"question": "q", "chosen": "a", "rejected": "b", "part": "ood"}
    own = held_out_layout([row], Layout(columns=columns))
    assert own == Layout(format="pairs", columns=columns | {"target_margin": None})
    assert check_layout([row], own, "ood").columns == own.columns


def test_columns_of_a_file_of_prompts_are_checked_too(tmp_path: Path) -> None:
    (tmp_path / "r.jsonl").write_text('{"question": "q", "part": "test"}\n')
    for columns, words in (({"prompt": "question", "split": "prt"}, "no column 'prt'"), ({"prompt": "q"}, "'q'")):
        with pytest.raises(ConfigError, match=words):
            load_prompts(tmp_path / "r.jsonl", Options(layout=Layout(columns=columns)))
    columns = {"prompt": "question", "split": "part", "chosen": "of pairs alone"}
    prompts, _ = load_prompts(tmp_path / "r.jsonl", Options(layout=Layout(columns=columns)))
    assert [(one.prompt, one.split) for one in prompts] == [("q", "test")]
    assert (slug("someone/mix-v1.2"), slug("a/rows.jsonl.gz")) == ("mix-v1.2", "rows")


PAIR = {"prompt": "q", "chosen": "a", "rejected": "b"}
LISTS = {"prompt": "q", "responses": ["a", "b"], "scores": [1, 2]}
IDS = [{"prompt": "q", "response": one, "prompt_id": 3, "rowId": 4, "id": at} for at, one in enumerate("ab")]


@pytest.mark.parametrize(
    ("rows", "layout", "words"),
    [
        ([PAIR], {"rating": "score"}, "no effect on pairs"),
        ([LISTS], {"rating": "score", "pairing": "all"}, "one list of 'scores' beside its responses"),
        (IDS, {"pairing": "all"}, "have no rating"),
        (
            [IDS[0] | {"helpfulness": 1}, IDS[1] | {"verbosity": 1}], {"pairing": "all"},
            r"several ways \(helpfulness, verbosity\)",
        ),
        ([IDS[0] | {"judge": "bard"}], {"pairing": "all", "rating": "judge"}, "no rating 'judge'; it has none"),
    ],
)  # fmt: skip
def test_a_rating_that_is_none_or_has_no_effect_is_refused(
    tmp_path: Path, rows: list[Any], layout: dict[str, Any], words: str
) -> None:
    with pytest.raises(ConfigError, match=words) as caught:
        _load(tmp_path / "r.jsonl", rows, **layout)
    assert caught.value.where == "data.rating"


def test_the_rating_is_decided_once_for_all_rows(tmp_path: Path) -> None:
    item = {"response": "a", "model": "bard", "id": 1, "score": 3}
    row = {"prompt": "q", "completions": [item, item | {"response": "b", "score": 1, "model": "7"}]}
    pairs, report = _load(tmp_path / "r.jsonl", [row], pairing="all")
    assert _texts(pairs) == [("q", "a", "b")]
    assert report.pairing is not None
    assert (report.pairing["rating"], report.pairing["format"]) == ("score", "ratings")
    rows = [one | {"score": at} for at, one in enumerate(IDS)] + [IDS[0] | {"length": 7}]  # no other number stands in
    pairs, report = _load(tmp_path / "r.jsonl", rows[:2] * 60 + rows[2:], pairing="all")
    assert _found(report)["bad_rating"] == (1, (121,))
    assert held_out_layout([LISTS], Layout(pairing="all", rating="score")) == Layout(format="ratings", pairing="all")


# ---- texts and numbers that cannot be written or held


SURROGATE = "\ud800"
HUGE = 10**400
LABEL = {"prompt": "q", "response_1": "a", "response_2": "b", "annotator": "ann", "preferred": "response_1"}
RANKS = {"prompt": "q", "responses": ["a", "b"], "ranks": [1, 2]}
RATED = {"prompt": "q", "response": "a", "score": 1}


def _annotated(**one: Any) -> dict[str, Any]:
    return PAIR | {"annotations": [{"annotator": "ann", "prefers_first": True} | one]}


@pytest.mark.parametrize(
    ("good", "bad", "code"),
    [
        (LISTS, LISTS | {"prompt": SURROGATE}, "bad_unicode"),
        (RATED, RATED | {"prompt": SURROGATE}, "bad_unicode"),
        (LABEL, LABEL | {"annotator": SURROGATE}, "bad_unicode"),
        (LABEL, LABEL | {"prompt": SURROGATE}, "bad_unicode"),
        (PAIR, _annotated(annotator=SURROGATE), "bad_unicode"),
        (PAIR, PAIR | {"prompt": [{"role": SURROGATE, "content": "a"}], "chosen": []}, "bad_unicode"),
        (PAIR, _annotated(annotator=" "), "bad_annotations"),
        (PAIR, _annotated(rating=HUGE), "bad_annotations"),
        (PAIR, PAIR | {"target_margin": HUGE}, "bad_margin"),
        (RANKS, RANKS | {"ranks": [1, HUGE]}, "bad_rating"),
        (LISTS, LISTS | {"scores": [1, -HUGE]}, "bad_rating"),
        (LISTS, LISTS | {"scores": [1, [1e308, 1e308]]}, "bad_rating"),
        (RATED, RATED | {"score": HUGE}, "bad_rating"),
        (LABEL, LABEL | {"preferred": None, "strength": HUGE}, "bad_rating"),
    ],
)
def test_what_cannot_be_written_or_held_is_a_finding_of_its_row(
    tmp_path: Path, good: dict[str, Any], bad: dict[str, Any], code: str
) -> None:
    pairing = {} if good in (PAIR, LABEL) else {"pairing": "best_vs_random"}
    _, report = _load(tmp_path / "r.jsonl", [good, bad], **pairing)
    assert _found(report)[code] == (1, (2,))


@pytest.mark.parametrize("good", [RATED, LABEL, LISTS], ids=["rated_rows", "labels", "ratings"])
def test_bytes_of_a_parquet_file_are_a_wrong_type(tmp_path: Path, good: dict[str, Any]) -> None:
    bad = {name: value.encode() if name == "prompt" else value for name, value in good.items()}
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist([bad]), tmp_path / "r.parquet")
    layout = Layout(pairing=None if good is LABEL else "all")
    report = load_pairs(tmp_path / "r.parquet", Options(layout=layout), stop=False)[1]
    assert _found(report)["wrong_type"] == (1, (1,))


# ---- what is read, but perhaps not as it was meant


def test_a_guessed_prompt_is_counted(tmp_path: Path) -> None:
    marked = {"chosen": "\n\nHuman: Hi\n\nAssistant: yes", "rejected": "\n\nHuman: Hi\n\nAssistant: no"}
    rows = [marked, {"chosen": "I think so", "rejected": "I do not"}, marked, marked]
    pairs, report = _load(tmp_path / "r.jsonl", rows)
    assert _texts(pairs)[1] == ("I", " think so", " do not")
    finding = next(one for one in report.findings if one.code == "guessed_prompt")
    assert (finding.severity, finding.count, finding.rows) == ("warning", 1, (2,))
    assert "'I'" in finding.message
    assert "(1 rows, 25.0%, are read so)" in finding.message
    assert "guessed_prompt" not in _found(_load(tmp_path / "r.jsonl", [marked, PAIR])[1])


def test_a_margin_below_0_of_the_datas_own_is_a_warning(tmp_path: Path) -> None:
    rows = [PAIR | {"target_margin": one, "prompt": f"q{one}"} for one in (0.5, -0.5, 0, -1)]
    pairs, report = _load(tmp_path / "r.jsonl", rows)
    assert (len(pairs), report.ok, _found(report)) == (4, True, {"negative_margin": (2, (2, 4))})
