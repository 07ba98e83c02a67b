"""Sources, validation and splits: every fault is named with its row, and nothing is repaired in silence."""

from __future__ import annotations

import csv
import gzip
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.workbench.role_template import Template
from workbench.data import sources
from workbench.data.check import Settings, check
from workbench.data.formats import RowError, implicit_prompt, parse_pair
from workbench.data.splits import (
    assign_split,
    check_disjoint,
    check_fractions,
    check_not_empty,
    normalize,
    pair_id,
    prompt_id,
)
from workbench.data.validate import Options, Report, load_pairs, load_prompts, unique_prompts
from workbench.errors import ConfigError, DataError
from workbench.types import Annotation

SHARED = Path(__file__).parents[2] / "../shared"
GOOD = {"prompt": "What is 1 + 1?", "chosen": "It is 2.", "rejected": "It is 3."}


def _rows(count: int) -> list[dict[str, Any]]:
    return [{"prompt": f"Question {i}?", "chosen": f"Good {i}.", "rejected": f"Bad {i}."} for i in range(count)]


def _write(folder: Path, *rows: Any, name: str = "pairs.jsonl") -> Path:
    path = folder / name
    lines = [row if isinstance(row, bytes) else json.dumps(row).encode() for row in rows]
    data = b"".join(line + b"\n" for line in lines)
    path.write_bytes(gzip.compress(data) if name.endswith(".gz") else data)
    return path


def _check(path: Path, **options: Any) -> Report:
    return load_pairs(path, Options(**options), stop=False)[1]


def _finding(report: Report, code: str) -> Any:
    assert code in {finding.code for finding in report.findings}, report
    return next(finding for finding in report.findings if finding.code == code)


# ---- sources


@pytest.mark.parametrize("name", ["pairs.jsonl", "pairs.jsonl.gz", "pairs.ndjson"])
def test_json_lines(tmp_path: Path, name: str) -> None:
    pairs, report = load_pairs(_write(tmp_path, *_rows(3), name=name), Options())
    assert [(pair.prompt, pair.chosen, pair.rejected) for pair in pairs] == [tuple(row.values()) for row in _rows(3)]
    assert report == Report(rows=3, kept=3, findings=())
    assert pairs[0].prompt_id == prompt_id(" question  0? ")
    assert len({pair.pair_id for pair in pairs}) == 3


def test_gzip_is_told_by_content(tmp_path: Path) -> None:
    path = _write(tmp_path, *_rows(2), name="pairs.jsonl.gz").rename(tmp_path / "pairs.jsonl")
    assert _check(path).kept == 2


def test_a_damaged_gzip_is_reported(tmp_path: Path) -> None:
    path = _write(tmp_path, *_rows(500), name="pairs.jsonl.gz")
    path.write_bytes(path.read_bytes()[:-30])
    assert _finding(_check(path), "unreadable").severity == "error"


def test_parquet_csv_and_folder_give_the_same_pairs(tmp_path: Path) -> None:
    rows = _rows(5)
    expected = load_pairs(_write(tmp_path, *rows), Options())[0]
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "pairs.parquet")
    with (tmp_path / "pairs.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, ["prompt", "chosen", "rejected"])
        writer.writeheader()
        writer.writerows(rows)
    folder = tmp_path / "folder"
    import datasets

    datasets.Dataset.from_list(rows).save_to_disk(str(folder))
    for source in (tmp_path / "pairs.parquet", tmp_path / "pairs.csv", folder):
        found, report = load_pairs(source, Options())
        assert [pair.pair_id for pair in found] == [pair.pair_id for pair in expected], source
        assert report.ok


def test_csv_rows_are_named_by_line_and_margins_are_numbers(tmp_path: Path) -> None:
    path = tmp_path / "pairs.csv"
    path.write_text('prompt,chosen,rejected,target_margin\n"two\nlines",a,b,1.5\nq,c\nq,d,e,soon\n', encoding="utf-8")
    pairs, report = load_pairs(path, Options(), stop=False)
    assert [(pair.prompt, pair.target_margin) for pair in pairs] == [("two\nlines", 1.5)]
    assert _finding(report, "malformed_csv").rows == (4,)
    assert _finding(report, "bad_margin").rows == (5,)


def test_broken_parquet_is_reported(tmp_path: Path) -> None:
    (tmp_path / "pairs.parquet").write_bytes(b"PAR1 not really")
    assert _finding(_check(tmp_path / "pairs.parquet"), "unreadable").severity == "error"


def test_a_source_that_does_not_exist_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no such file.*gone\.jsonl"):
        load_pairs(tmp_path / "gone.jsonl", Options())


def test_hub_ids_go_to_datasets(monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    asked: list[Any] = []

    def load(name: str, *, revision: str | None, split: str | None) -> Any:
        asked.append((name, revision, split))
        return {"test": datasets.Dataset.from_list(_rows(1)), "train": datasets.Dataset.from_list(_rows(4))}

    monkeypatch.setattr(datasets, "load_dataset", load)
    assert len(load_pairs("someone/preferences@abc", Options(limit=3))[0]) == 3
    assert asked == [("someone/preferences", "abc", None)]


def test_a_hub_failure_is_explained(monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    def load(*args: Any, **kwargs: Any) -> Any:
        raise ConnectionError("no network")

    monkeypatch.setattr(datasets, "load_dataset", load)
    with pytest.raises(DataError, match="no network"):
        load_pairs("someone/preferences", Options())


def test_limit_reads_the_top_only(tmp_path: Path) -> None:
    report = _check(_write(tmp_path, *_rows(3), b"{broken"), limit=3)
    assert (report.rows, report.ok) == (3, True)


# ---- formats


def test_the_implicit_prompt_of_a_dialogue_ends_with_its_last_common_mark() -> None:
    prompt = "\n\nHuman: Hi\n\nAssistant: Hello\n\nHuman: Why?\n\nAssistant:"
    texts = parse_pair({"chosen": prompt + " Because it is.", "rejected": prompt + " Because I say so."})
    assert texts.format == "standard-implicit"
    assert (texts.prompt, texts.chosen, texts.rejected) == (prompt, " Because it is.", " Because I say so.")


def test_the_implicit_prompt_of_other_texts_ends_before_a_whole_word() -> None:
    assert implicit_prompt("The sky is blue", "The sky is black") == "The sky is"
    assert implicit_prompt("blue", "black") == ""
    with pytest.raises(RowError, match="share no beginning"):
        parse_pair({"chosen": "yes", "rejected": "no"})


@given(st.text(max_size=20), st.text(max_size=12), st.text(max_size=12), st.booleans())
def test_prompt_and_responses_add_up_to_the_original_texts(prefix: str, one: str, other: str, dialogue: bool) -> None:
    prefix += "\n\nAssistant:" if dialogue else ""
    prompt = implicit_prompt(prefix + one, prefix + other)
    assert (prefix + one).startswith(prompt)
    assert (prefix + other).startswith(prompt)
    if dialogue:
        assert len(prompt) >= len(prefix)


def _message(role: str, content: str) -> dict[str, str]:
    return {"role": role, "content": content}


USER, YES, NO = _message("user", "Is it?"), _message("assistant", "Yes."), _message("assistant", "No.")


@pytest.mark.parametrize(
    ("row", "name"),
    [
        ({"prompt": [USER], "chosen": [YES], "rejected": [NO]}, "conversational"),
        ({"chosen": [USER, YES], "rejected": [USER, NO]}, "conversational-implicit"),
        ({"prompt": "Is it?", "chosen": [USER, YES], "rejected": [USER, NO]}, "conversational-implicit"),
    ],
)
def test_conversations_are_rendered_by_the_template(row: dict[str, Any], name: str) -> None:
    texts = parse_pair(row, Template())
    assert (texts.format, texts.prompt) == (name, "<user>Is it?</s><assistant>")
    assert (texts.chosen, texts.rejected) == ("Yes.</s>", "No.</s>")


@pytest.mark.parametrize("tokenizer", [None, type("T", (), {"chat_template": None})()])
def test_a_conversation_without_a_template_is_refused(tmp_path: Path, tokenizer: Any) -> None:
    path = _write(tmp_path, {"prompt": [USER], "chosen": [YES], "rejected": [NO]})
    with pytest.raises(DataError, match="chat template"):
        load_pairs(path, Options(drop_invalid=True), tokenizer=tokenizer)


class Rewriting(Template):
    def apply_chat_template(self, messages: list[dict[str, str]], **options: Any) -> str:
        text = super().apply_chat_template(messages, **options)
        return text if options["add_generation_prompt"] else text.upper()


class Failing(Template):
    def apply_chat_template(self, messages: list[dict[str, str]], **options: Any) -> str:
        raise KeyError("bos")


@pytest.mark.parametrize("tokenizer", [Rewriting(), Failing()])
def test_a_broken_template_is_refused(tokenizer: Any) -> None:
    with pytest.raises(RowError) as caught:
        parse_pair({"prompt": [USER], "chosen": [YES], "rejected": [NO]}, tokenizer)
    assert caught.value.code == "template_broken"


@pytest.mark.parametrize(
    ("row", "code"),
    [
        ({"prompt": [USER, YES], "chosen": [YES], "rejected": [NO]}, "bad_conversation"),
        ({"prompt": [USER], "chosen": [USER], "rejected": [NO]}, "bad_conversation"),
        ({"prompt": "other", "chosen": [USER, YES], "rejected": [USER, NO]}, "wrong_type"),
        ({"prompt": [USER], "chosen": [{"role": "assistant", "content": None}], "rejected": [NO]}, "wrong_type"),
        ({"prompt": [USER], "chosen": ["Yes."], "rejected": [NO]}, "wrong_type"),
        ({"prompt": [USER], "chosen": [_message("assistant", " ")], "rejected": [NO]}, "empty_text"),
        ({"chosen": [YES], "rejected": [NO]}, "no_common_prompt"),
    ],
)
def test_bad_conversations(row: dict[str, Any], code: str) -> None:
    with pytest.raises(RowError) as caught:
        parse_pair(row, Template())
    assert caught.value.code == code


def test_annotations_and_margins_are_taken_over(tmp_path: Path) -> None:
    votes = [{"annotator": "ann", "prefers_first": False}]
    pairs, _ = load_pairs(_write(tmp_path, GOOD | {"annotations": votes, "target_margin": 2}), Options())
    assert pairs[0].annotations == (Annotation(annotator="ann", prefers_first=False),)
    assert pairs[0].target_margin == 2.0


# ---- validation


@pytest.mark.parametrize(
    ("bad", "code", "words"),
    [
        (b'{"prompt": "a", "chosen" "b"}', "malformed_json", "column 26"),
        (b'["a"]', "malformed_json", "expected an object, found list"),
        (b"", "malformed_json", "blank line"),
        (b'{"prompt": "a", "prompt": "b", "chosen": "c", "rejected": "d"}', "duplicate_key", "'prompt' stands twice"),
        (
            {"prompt": "a", "chosen": "b", "reject": "c"},
            "missing_column",
            "no column 'rejected'; expected .* found .*'reject'",
        ),
        (GOOD | {"chosen": None}, "wrong_type", "chosen is null"),
        (GOOD | {"rejected": 3}, "wrong_type", "rejected is a number"),
        (GOOD | {"prompt": {"a": 1}}, "wrong_type", "prompt is an object"),
        (GOOD | {"chosen": ""}, "empty_text", "chosen is empty"),
        (GOOD | {"rejected": " \n\t"}, "empty_text", "rejected is only whitespace"),
        (GOOD | {"chosen": "a\0b"}, "nul", "NUL at character 1"),
        (b'{"prompt": "a\0"}', "nul", "NUL byte at byte"),
        (b'{"prompt": "caf\xe9"}', "not_utf8", "byte 0xe9 at byte"),
        (b'{"prompt": "a", "chosen": "\\ud800", "rejected": "b"}', "bad_unicode", "lone surrogate"),
        (GOOD | {"annotations": [{"who": "x"}]}, "bad_annotations", r"annotations\[0\]"),
        (GOOD | {"target_margin": "high"}, "bad_margin", "finite number"),
        (GOOD | {"split": "dev"}, "bad_split", "'dev'"),
    ],
)
def test_a_bad_row_is_found_and_can_be_dropped(tmp_path: Path, bad: Any, code: str, words: str) -> None:
    rows = _rows(2)
    path = _write(tmp_path, rows[0], bad, rows[1])
    with pytest.raises(DataError, match=words) as caught:
        load_pairs(path, Options())
    assert caught.value.exit_code == 2
    assert caught.value.where == "pairs.jsonl:2"
    assert "pairs.jsonl:2: " in caught.value.message
    finding = _finding(_check(path), code)
    assert (finding.severity, finding.count, finding.rows) == ("error", 1, (2,))
    pairs, report = load_pairs(path, Options(drop_invalid=True))
    assert [pair.prompt for pair in pairs] == [row["prompt"] for row in rows]
    assert (report.rows, report.kept, report.ok) == (3, 2, True)
    assert _finding(report, code).message.startswith("dropped: ")


def test_byte_offsets_count_from_the_start_of_the_file(tmp_path: Path) -> None:
    first = json.dumps(GOOD).encode()
    path = _write(tmp_path, first, b'{"a": "\xff"}')
    assert f"byte {len(first) + 1 + 7} " in _finding(_check(path), "not_utf8").message


def test_all_findings_come_at_once_with_ten_rows_and_the_total(tmp_path: Path) -> None:
    rows = [*_rows(2), *[GOOD | {"chosen": ""}] * 12, b"{", GOOD | {"rejected": 1}]
    with pytest.raises(DataError) as caught:
        load_pairs(_write(tmp_path, *rows), Options())
    text = caught.value.message
    assert "14 problem(s) of 3 kinds" in text
    assert "[empty_text] 12 in all" in text
    assert text.count("chosen is empty") == 10
    assert "... and 2 more" in text
    assert "pairs.jsonl:15: column 2" in text
    assert "pairs.jsonl:16: rejected is a number" in text
    assert _finding(_check(tmp_path / "pairs.jsonl"), "empty_text").rows == tuple(range(3, 13))


@pytest.mark.parametrize(
    ("mark", "name"), [(b"\xef\xbb\xbf", "UTF-8"), (b"\xff\xfe", "UTF-16"), (b"\xff\xfe\0\0", "UTF-32")]
)
def test_a_byte_order_mark_is_refused_even_when_dropping(tmp_path: Path, mark: bytes, name: str) -> None:
    path = _write(tmp_path, mark + json.dumps(GOOD).encode())
    with pytest.raises(DataError, match=f"{name} byte order mark at byte 0"):
        load_pairs(path, Options(drop_invalid=True))


@pytest.mark.parametrize("data", [b"", b"\n"])
def test_an_empty_file_is_refused(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "pairs.jsonl").write_bytes(data)
    with pytest.raises(DataError):
        load_pairs(tmp_path / "pairs.jsonl", Options(drop_invalid=True))


def test_an_array_and_an_unknown_type_are_refused(tmp_path: Path) -> None:
    assert _finding(_check(_write(tmp_path, [GOOD], name="pairs.json")), "json_array").fix.startswith("Write one JSON")
    assert _finding(_check(_write(tmp_path, GOOD, name="pairs.txt")), "unknown_type").severity == "error"


def test_nothing_left_after_dropping_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no usable row is left of 2"):
        load_pairs(_write(tmp_path, b"{", b"{"), Options(drop_invalid=True))


def test_a_giant_row_is_not_parsed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert sources.MAX_ROW_BYTES == 8 * 2**20
    monkeypatch.setattr(sources, "MAX_ROW_BYTES", 1000)
    giant = GOOD | {"chosen": "x" * 5000}
    exact = json.dumps(GOOD | {"prompt": "y"}).encode()
    path = _write(tmp_path, GOOD, giant, exact + b" " * (1000 - len(exact)))
    report = _check(path)
    assert _finding(report, "giant_row").rows == (2,)
    assert f"{len(json.dumps(giant)) + 1:,} bytes" in _finding(report, "giant_row").message
    assert report.kept == 2


def test_mixed_formats_are_refused_with_their_rows(tmp_path: Path) -> None:
    chat = {"prompt": [USER], "chosen": [YES], "rejected": [NO]}
    path = _write(tmp_path, GOOD, chat, *_rows(2), chat)
    with pytest.raises(DataError, match=r"conversational, but 3 rows are standard"):
        load_pairs(path, Options(drop_invalid=True), tokenizer=Template())
    _, report = load_pairs(path, Options(), tokenizer=Template(), stop=False)
    assert _finding(report, "mixed_formats").rows == (2, 5)


def test_identical_pairs_are_dropped_and_refused_above_one_percent(tmp_path: Path) -> None:
    same = {"prompt": "x", "chosen": "equal", "rejected": "equal"}
    pairs, report = load_pairs(_write(tmp_path, same, *_rows(99)), Options())
    assert (len(pairs), _finding(report, "identical_pair").rows) == (99, (1,))
    with pytest.raises(DataError, match=r"2 of 101 pairs \(2.0%\)"):
        load_pairs(_write(tmp_path, same, same, *_rows(99)), Options())
    assert len(load_pairs(tmp_path / "pairs.jsonl", Options(max_identical_fraction=0.05))[0]) == 99


def test_duplicates_are_kept_unless_asked(tmp_path: Path) -> None:
    path = _write(tmp_path, *_rows(3), _rows(2)[1])
    pairs, report = load_pairs(path, Options())
    assert (len(pairs), report.ok) == (4, True)
    assert len({pair.pair_id for pair in pairs}) == 4
    assert "row 2" in _finding(report, "duplicate_pair").message
    pairs, report = load_pairs(path, Options(deduplicate=True))
    assert (len(pairs), report.rows, report.kept) == (3, 4, 3)
    assert _finding(report, "duplicate_pair").count == 1


def test_opposite_labels_are_counted_as_a_rate(tmp_path: Path) -> None:
    swapped = GOOD | {"chosen": GOOD["rejected"], "rejected": GOOD["chosen"]}
    report = _check(_write(tmp_path, GOOD, *_rows(2), swapped))
    finding = _finding(report, "contradiction")
    assert (finding.severity, finding.rows, report.kept) == ("warning", (4,), 4)
    assert "row 1" in finding.message
    assert "25.00%" in finding.message


def test_the_report_is_what_data_check_prints(tmp_path: Path) -> None:
    report = _check(_write(tmp_path, GOOD, b"{")).to_json()
    assert set(report) == {"rows", "kept", "findings"}
    assert set(report["findings"][0]) == {"code", "severity", "count", "rows", "message", "fix"}
    assert json.loads(json.dumps(report)) == report


def test_prompts_are_read_once_each(tmp_path: Path) -> None:
    path = _write(tmp_path, {"prompt": "One?"}, {"prompt": " one? "}, {"prompt": "Two?"})
    prompts, report = load_prompts(path, Options())
    assert [prompt.prompt for prompt in prompts] == ["One?", "Two?"]
    assert _finding(report, "duplicate_prompt").rows == (2,)
    with pytest.raises(DataError, match="no column 'prompt'"):
        load_prompts(_write(tmp_path, {"text": "One?"}), Options())


def test_validation_needs_neither_torch_nor_transformers(tmp_path: Path) -> None:
    path = _write(tmp_path, *_rows(3))
    code = (
        "import sys; from workbench.data.validate import *; import workbench.data.stages, workbench.gold\n"
        f"assert load_pairs({str(path)!r}, Options())[1].kept == 3\n"
        "from workbench.worlds.helpdesk import build_tokenizer; from pathlib import Path\n"
        f"build_tokenizer(Path({str(tmp_path / 'tokenizer')!r}))\n"
        "assert not {'torch', 'transformers', 'datasets'} & set(sys.modules), sorted(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[2])


# ---- splits


@given(st.lists(st.text(min_size=1, max_size=8), unique=True, max_size=30), st.integers(0, 5))
def test_splits_depend_on_nothing_but_prompt_and_seed(texts: list[str], seed: int) -> None:
    fractions = {"validation": 0.3, "test": 0.3}
    one = {text: assign_split(prompt_id(text), fractions, seed) for text in texts}
    assert one == {text: assign_split(prompt_id(text), fractions, seed) for text in reversed(texts)}
    assert all(one[text] == assign_split(prompt_id(f"  {text} \n"), fractions, seed) for text in texts)
    check_disjoint(one.items())


def test_splits_have_about_their_fractions_and_depend_on_the_seed() -> None:
    fractions = {"validation": 0.1, "test": 0.2}
    ids = [prompt_id(f"prompt {i}") for i in range(4000)]
    splits = [assign_split(one, fractions, 0) for one in ids]
    assert splits.count("validation") / 4000 == pytest.approx(0.1, abs=0.02)
    assert splits.count("test") / 4000 == pytest.approx(0.2, abs=0.02)
    assert splits != [assign_split(one, fractions, 1) for one in ids]


def test_pairs_of_one_prompt_share_a_split(tmp_path: Path) -> None:
    rows = [
        {"prompt": f"Q {i % 40}" if i < 80 else f"q  {i % 40}", "chosen": f"a{i}", "rejected": "b"} for i in range(160)
    ]
    pairs, _ = load_pairs(_write(tmp_path, *rows), Options(fractions={"validation": 0.3, "test": 0.3}))
    splits: dict[str, set[str]] = {}
    for pair in pairs:
        splits.setdefault(normalize(pair.prompt), set()).add(pair.split)
    assert all(len(names) == 1 for names in splits.values())
    assert len(splits) == 40
    assert len(unique_prompts(pairs)) == 40
    assert {pair.split for pair in pairs} == {"train", "validation", "test"}


def test_given_splits_are_kept_and_must_be_disjoint(tmp_path: Path) -> None:
    rows = [row | {"split": split} for row, split in zip(_rows(3), ("train", "test", "validation"), strict=True)]
    pairs, _ = load_pairs(_write(tmp_path, *rows), Options(fractions={"test": 0.9}))
    assert [pair.split for pair in pairs] == ["train", "test", "validation"]
    with pytest.raises(DataError, match=r"1 of 3 prompts stand in more than one split"):
        load_pairs(_write(tmp_path, *rows, rows[0] | {"prompt": "QUESTION  0?", "split": "test"}), Options())
    with pytest.raises(DataError, match="no 'split', but others have one"):
        load_pairs(_write(tmp_path, *rows, GOOD), Options())


def test_a_file_that_names_its_splits_is_told_which_one_no_row_says(tmp_path: Path) -> None:
    rows = [row | {"split": "test" if at else "train"} for at, row in enumerate(_rows(3))]
    path = _write(tmp_path, *rows)
    _, report = load_pairs(path, Options(fractions={"validation": 0.1, "test": 0.1}))
    assert report.own_splits
    assert not load_pairs(_write(tmp_path, *_rows(3)), Options())[1].own_splits
    with pytest.raises(DataError, match=r"no row says split 'validation'.*\(1 train, 2 test prompts\).*split: null"):
        check_not_empty({"train": 1, "test": 2}, {"validation": 0.1, "test": 0.1}, own=True)
    path = _write(tmp_path, *rows)
    told = check(path, Settings(options=Options(fractions={"validation": 0.1, "test": 0.1})))
    (empty,) = (one for one in told.findings if one.code == "empty_split")
    assert "no row says split 'validation'" in empty.message


def test_empty_splits_and_wrong_fractions_are_refused() -> None:
    with pytest.raises(DataError, match="validation came out empty: 5 prompts"):
        check_not_empty({"train": 5}, {"validation": 0.1})
    with pytest.raises(DataError, match="train"):
        check_not_empty({"validation": 5}, {"validation": 0.1})
    for wrong in ({"test": 1.0}, {"test": 0.5, "validation": 0.5}, {"dev": 0.1}, {"test": -0.1}):
        with pytest.raises(ConfigError):
            check_fractions(wrong)


def test_pair_ids_tell_texts_apart_by_their_boundaries() -> None:
    assert pair_id("a", "bc", "d") != pair_id("ab", "c", "d")
    assert pair_id("a", "b", "c") != pair_id("a", "b", "c", 1)


# ---- real data


@pytest.mark.skipif(not SHARED.is_dir(), reason="needs the shared data beside the repository")
def test_hh_rlhf_is_read_as_it_is() -> None:
    source = SHARED / "data/hh_rlhf/harmless-base.first-1500.jsonl.gz"
    with pytest.raises(DataError, match="nothing after the prompt"):  # four responses of it are empty
        load_pairs(source, Options())
    pairs, report = load_pairs(source, Options(drop_invalid=True, fractions={"validation": 0.1, "test": 0.1}))
    assert (report.rows, report.kept) == (1500, len(pairs))
    assert _finding(report, "empty_text").count == 4
    with gzip.open(source, "rt", encoding="utf-8") as file:
        originals = {(row["chosen"], row["rejected"]) for row in map(json.loads, file)}
    for pair in pairs:
        assert pair.prompt.endswith("\n\nAssistant:")
        assert (pair.prompt + pair.chosen, pair.prompt + pair.rejected) in originals
