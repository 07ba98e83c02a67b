"""Ratings, rankings and labels as pairs: the schemas of public sets, the rules, what makes no pair, what is refused."""

from __future__ import annotations

import json
import operator
import random
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from tests.workbench.role_template import Template
from workbench.config import Data
from workbench.data.columns import COLUMNS, check_columns, rename
from workbench.data.layout import Layout
from workbench.data.pairing import choose
from workbench.data.validate import Options, Report, load_pairs, load_prompts
from workbench.errors import ConfigError, DataError
from workbench.types import Annotation, PreferencePair


def _write(folder: Path, rows: list[Any], name: str = "rows.jsonl") -> Path:
    path = folder / name
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def _load(
    folder: Path, rows: list[Any], seed: int = 0, drop_invalid: bool = False, tokenizer: Any = None, **layout: Any
) -> tuple[list[PreferencePair], Report]:
    options = Options(layout=Layout(**layout), seed=seed, drop_invalid=drop_invalid, max_identical_fraction=1.0)
    return load_pairs(_write(folder, rows), options, tokenizer=tokenizer)


def _texts(pairs: list[PreferencePair]) -> list[tuple[str, str, str]]:
    return [(pair.prompt, pair.chosen, pair.rejected) for pair in pairs]


def _count(report: Report, code: str) -> int:
    return sum(one.count for one in report.findings if one.code == code)


# ---- the rule


def _first(count: int) -> int:
    return 0


def test_best_vs_worst_takes_the_first_of_equals() -> None:
    assert choose([3, 9, 1, 9, 1], "best_vs_worst", 0, _first).pairs == [(1, 2)]


def test_all_makes_every_pair_of_different_ratings() -> None:
    made = choose([1, 3, 3, 2], "all", 0, _first)
    assert made.pairs == [(1, 0), (2, 0), (3, 0), (1, 3), (2, 3)]
    assert (made.ties, made.small) == (1, 0)
    made = choose([1, 3, 3, 2], "all", 2, _first)
    assert (made.pairs, made.ties, made.small) == ([(1, 0), (2, 0)], 1, 3)


def test_best_vs_random_draws_among_those_that_differ_enough() -> None:
    scores = [5.0, 8.0, 8.0, 7.5, 2.0]
    drawn = {choose(scores, "best_vs_random", 1, partial(operator.mod, at)).pairs[0] for at in range(4)}
    assert drawn == {(1, 0), (1, 4)}
    assert choose([4.0, 4.0], "best_vs_random", 0, _first).ties == 1
    assert choose([4.0, 4.5], "best_vs_random", 1, _first).small == 1


# ---- UltraFeedback


def _completion(response: str, overall: float, fine: float, helpfulness: str = "4") -> dict[str, Any]:
    """A completion as openbmb/UltraFeedback has it."""
    return {
        "annotations": {
            "helpfulness": {"Rating": helpfulness, "Rationale": "r", "Type": ["1"], "Rationale For Rating": "r"},
            "honesty": {"Rating": "5", "Rationale": "r"},
            "instruction_following": {"Rating": "3", "Rationale": "r"},
            "truthfulness": {"Rating": "5", "Rationale": "r", "Type": ["None"]},
        },
        "critique": "fine", "custom_system_prompt": "You are helpful.", "fine-grained_score": fine, "model": "bard",
        "overall_score": overall, "principle": "helpfulness", "response": response,
    }  # fmt: skip


def _ultrafeedback(instruction: str, *completions: dict[str, Any]) -> dict[str, Any]:
    return {
        "source": "evol_instruct", "instruction": instruction, "models": ["bard"] * len(completions),
        "completions": list(completions), "correct_answers": ["None"], "incorrect_answers": ["None"],
    }  # fmt: skip


FOUR = _ultrafeedback(
    "Why?", _completion("a", 7.0, 4.25, "2"), _completion("b", 10.0, 4.0, "5"), _completion("c", 3.0, 1.5, "N/A"),
    _completion("d", 7.0, 4.75, "3"),
)  # fmt: skip


@pytest.mark.parametrize(
    ("rating", "pair"),
    [
        ("overall_score", ("Why?", "b", "c")),
        ("fine-grained_score", ("Why?", "d", "c")),
        ("helpfulness", ("Why?", "b", "a")),  # c's is N/A
        ({"overall_score": -1.0, "honesty": 0.5}, ("Why?", "c", "b")),
    ],
)
def test_four_rated_completions_make_a_pair(tmp_path: Path, rating: Any, pair: tuple[str, str, str]) -> None:
    pairs, report = _load(tmp_path, [FOUR], pairing="best_vs_worst", rating=rating)
    assert _texts(pairs) == [pair]
    assert _count(report, "unrated_response") == int(rating == "helpfulness")
    assert report.pairing is not None
    assert report.pairing["format"] == "ratings"
    assert report.pairing["counts"]["responses"] == 4


def test_margins_are_scaled_differences_in_score(tmp_path: Path) -> None:
    options: dict[str, Any] = {"rating": "overall_score", "margins": "score_difference", "margin_scale": 0.5}
    pairs, report = _load(tmp_path, [FOUR], pairing="all", min_gap=4, **options)
    assert {(pair.chosen, pair.rejected): pair.target_margin for pair in pairs} == {
        ("b", "c"): 3.5, ("a", "c"): 2.0, ("d", "c"): 2.0,
    }  # fmt: skip
    assert report.pairing is not None
    counts = {"prompts": 1, "responses": 4, "pairs": 3, "ties": 1, "below_min_gap": 2}
    assert report.pairing["counts"] == counts
    assert (report.rows, report.kept) == (1, 3)
    assert (_count(report, "rating_tie"), _count(report, "small_gap")) == (1, 1)  # rows; the counts are of comparisons
    assert json.loads(json.dumps(report.to_json()))["pairing"]["counts"] == counts


def test_a_random_draw_hangs_on_prompt_and_seed_alone(tmp_path: Path) -> None:
    rows = [
        _ultrafeedback(f"Why {i}?", *(_completion(f"{name}{i}", 9 - at, 1) for at, name in enumerate("abcd")))
        for i in range(40)
    ]
    options: dict[str, Any] = {"pairing": "best_vs_random", "rating": "overall_score"}
    found = set(_texts(_load(tmp_path, rows, seed=1, **options)[0]))
    shuffled = random.Random(0).sample(rows, len(rows))
    assert set(_texts(_load(tmp_path, [*shuffled, FOUR], seed=1, **options)[0])) >= found
    assert set(_texts(_load(tmp_path, rows, seed=2, **options)[0])) != found
    assert {text[0] for _, _, text in found} == set("bcd")


@pytest.mark.parametrize(
    ("completion", "code", "words"),
    [
        ({"response": "x", "overall_score": "high"}, "bad_rating", "overall_score of completions[1] is 'high'"),
        ({"response": "x", "overall_score": True}, "bad_rating", "expected a number"),
        ({"response": "x"}, "bad_rating", "no rating 'overall_score'"),
        ({"overall_score": 3}, "missing_column", "completions[1] has no 'response'"),
        ("x", "wrong_type", "expected an object"),
    ],
)
def test_a_bad_completion_is_named_by_row(tmp_path: Path, completion: Any, code: str, words: str) -> None:
    bad = _ultrafeedback("How?", _completion("a", 1, 1), completion)
    rows = [FOUR, bad]
    with pytest.raises(DataError) as caught:
        _load(tmp_path, rows, pairing="all", rating="overall_score")
    assert words in caught.value.message
    assert caught.value.where == "rows.jsonl:2"
    pairs, report = _load(tmp_path, rows, pairing="all", rating="overall_score", drop_invalid=True)
    assert (len(pairs), _count(report, code)) == (5, 1)


def _message(role: str, content: str) -> dict[str, str]:
    return {"role": role, "content": content}


def _binarized(chosen: str, rejected: str, score_chosen: float, score_rejected: float, at: int = 0) -> dict[str, Any]:
    """A row of HuggingFaceH4/ultrafeedback_binarized, train_prefs."""
    prompt = f"Is it {at}?"
    return {
        "prompt": prompt, "prompt_id": "0" * 64, "messages": [_message("user", prompt), _message("assistant", chosen)],
        "chosen": [_message("user", prompt), _message("assistant", chosen)],
        "rejected": [_message("user", prompt), _message("assistant", rejected)],
        "score_chosen": score_chosen, "score_rejected": score_rejected,
    }  # fmt: skip


def test_binarized_scores_become_margins_where_asked(tmp_path: Path) -> None:
    rows = [_binarized("yes", "no", 8.5, 6.0), _binarized("si", "non", 7.0, 7.0, 1)]
    pairs, report = _load(tmp_path, rows, tokenizer=Template())
    assert [pair.target_margin for pair in pairs] == [None, None]
    assert report.pairing is None  # every row is a pair, and nothing was asked
    assert _texts(pairs)[0] == ("<user>Is it 0?</s><assistant>", "yes</s>", "no</s>")
    pairs, report = _load(tmp_path, rows, tokenizer=Template(), margins="score_difference", margin_scale=0.1)
    assert [pair.target_margin for pair in pairs] == [0.25]  # equal scores make no pair
    assert report.pairing is not None
    assert (report.pairing["counts"], _count(report, "rating_tie")) == ({"pairs": 1, "ties": 1}, 1)
    pairs, report = _load(tmp_path, rows, tokenizer=Template(), min_gap=1.0)
    assert [pair.target_margin for pair in pairs] == [None]
    assert _count(report, "small_gap") == 1
    wrong = [*rows, _binarized("oui", "ja", 2, 5, 2), {**rows[0], "score_chosen": None}]
    with pytest.raises(DataError, match="chosen scores 2, less than rejected with 5") as caught:
        _load(tmp_path, wrong, tokenizer=Template(), margins="score_difference")
    assert "rows.jsonl:4: data.margins and data.min_gap need score_chosen" in caught.value.message
    both = [{**rows[0], "target_margin": 1.0}]
    with pytest.raises(DataError, match="give one"):
        _load(tmp_path, both, tokenizer=Template(), margins="score_difference")


# ---- HelpSteer


def _helpsteer(prompt: str, response: str, helpfulness: Any, verbosity: Any = 2) -> dict[str, Any]:
    """A row of nvidia/HelpSteer2."""
    return {
        "prompt": prompt, "response": response, "helpfulness": helpfulness, "correctness": 3, "coherence": 4,
        "complexity": 2, "verbosity": verbosity,
    }  # fmt: skip


def test_rated_rows_of_one_prompt_are_paired_wherever_they_stand(tmp_path: Path) -> None:
    rows = [
        _helpsteer("c#", "good", 4), _helpsteer("go", "meh", 1), _helpsteer("c#", "bad", 2),
        _helpsteer("go", "fine", 3), _helpsteer("alone", "one", 3), _helpsteer("even", "x", 3),
        _helpsteer("even", "y", 3),
    ]  # fmt: skip
    pairs, report = _load(tmp_path, rows, pairing="best_vs_worst", rating="helpfulness", margins="score_difference")
    assert _texts(pairs) == [("c#", "good", "bad"), ("go", "fine", "meh")]
    assert [pair.target_margin for pair in pairs] == [2.0, 2.0]
    found = {one.code: one.rows for one in report.findings}
    assert found == {"single_response": (5,), "rating_tie": (6,)}
    assert report.pairing is not None
    assert report.pairing["counts"] == {
        "below_min_gap": 0, "pairs": 2, "prompts": 4, "responses": 7, "single": 1, "ties": 1,
    }  # fmt: skip


def test_several_annotators_scores_are_their_mean_and_weights_add_up(tmp_path: Path) -> None:
    rows = [_helpsteer("c#", "a", [4, 3, 3], 4), _helpsteer("c#", "b", [3, 4, 2], 0)]  # as in `disagreements`
    pairs, _ = _load(tmp_path, rows, pairing="all", rating="helpfulness", margins="score_difference")
    assert _texts(pairs) == [("c#", "a", "b")]
    assert pairs[0].target_margin == pytest.approx(1 / 3)
    pairs, _ = _load(tmp_path, rows, pairing="all", rating={"helpfulness": 1, "verbosity": -0.5})
    assert _texts(pairs) == [("c#", "b", "a")]


def test_ratings_of_a_csv_are_numbers(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    path.write_text("prompt,response,helpfulness\nq,a,2\nq,b,10\n", encoding="utf-8")
    pairs, _ = load_pairs(path, Options(layout=Layout(pairing="all")))
    assert _texts(pairs) == [("q", "b", "a")]  # 10 over 2, not "2" over "10"


# ---- rankings


def test_ranks_make_pairs_and_equal_ranks_none(tmp_path: Path) -> None:
    row = {"prompt": "q", "responses": ["a", "b", "c", "d"], "ranks": [2, 1, 3, 2]}
    pairs, report = _load(tmp_path, [row], pairing="all")
    assert set(_texts(pairs)) == {("q", x, y) for x, y in ("ba", "ac", "bc", "bd", "dc")}
    assert _count(report, "rating_tie") == 1
    nectar = {"prompt": "q", "answers": [{"answer": "a", "model": "m", "rank": 2.0}, {"answer": "b", "rank": 1.0}]}
    pairs, _ = _load(tmp_path, [nectar], pairing="all", columns={"responses": "answers"})
    assert _texts(pairs) == [("q", "b", "a")]


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ({"prompt": "q", "responses": ["a", "b"], "ranks": [1]}, "2 responses but 1 ranks"),
        ({"prompt": "q", "responses": ["a", "b"], "ranks": [0, 1]}, "a rank is 0; expected 1 for the best"),
        ({"prompt": "q", "responses": "a", "ranks": [1]}, "responses is str; expected a list"),
        ({"prompt": "q", "responses": ["a", 3], "ranks": [1, 2]}, "rejected is a number; expected text"),
    ],
)
def test_bad_rankings(tmp_path: Path, row: dict[str, Any], words: str) -> None:
    good = {"prompt": "q", "responses": ["a", "b"], "ranks": [1, 2]}
    with pytest.raises(DataError) as caught:
        _load(tmp_path, [good, row], pairing="all")
    assert words in caught.value.message
    assert caught.value.where == "rows.jsonl:2"


def test_scores_beside_responses(tmp_path: Path) -> None:
    rows = [{"prompt": [_message("user", "q")], "responses": ["a", "b", "c"], "scores": [0.5, None, 0.75]}]
    pairs, report = _load(tmp_path, rows, pairing="best_vs_worst", tokenizer=Template())
    assert _texts(pairs) == [("<user>q</s><assistant>", "c</s>", "a</s>")]  # a text answers messages as the assistant
    assert _count(report, "unrated_response") == 1


# ---- labels


def _label(annotator: str, preferred: Any, first: str = "a", second: str = "b", prompt: str = "q") -> dict[str, Any]:
    return {
        "prompt": prompt, "response_1": first, "response_2": second, "annotator": annotator, "preferred": preferred
    }  # fmt: skip


def test_one_label_a_row_gathers_to_pairs_whichever_side_was_first(tmp_path: Path) -> None:
    rows = [
        _label("ann", "response_1"), _label("bo", "response_1", "x", "y", "p"), _label("bo", 1, "b", "a"),
        _label("cy", "1"), _label("di", "response_2", "b", "a"), _label("ed", "tie"),
    ]  # fmt: skip
    pairs, report = _load(tmp_path, rows)
    assert _texts(pairs) == [("q", "a", "b"), ("p", "x", "y")]
    assert pairs[0].annotations == (
        Annotation(annotator="ann", prefers_first=True), Annotation(annotator="bo", prefers_first=False),
        Annotation(annotator="cy", prefers_first=True), Annotation(annotator="di", prefers_first=True),
    )  # fmt: skip
    assert report.pairing is not None
    assert report.pairing["counts"] == {"labeled_pairs": 2, "labels": 6, "pairs": 2, "tie_labels": 1}
    assert (report.rows, report.kept) == (6, 2)


def test_a_draw_of_labels_makes_no_pair(tmp_path: Path) -> None:
    rows = [_label("ann", "response_1"), _label("bo", "response_2"), _label("bo", "response_2", prompt="p")]
    pairs, report = _load(tmp_path, rows)
    assert _texts(pairs) == [("p", "b", "a")]
    found = {one.code: (one.rows, one.severity) for one in report.findings}
    assert found == {"label_tie": ((1,), "warning")}


def test_labels_may_stand_in_a_list(tmp_path: Path) -> None:
    labels = [{"annotator": "ann", "preferred": "response_2"}, {"annotator": 7, "strength": 2}, {"strength": -1}]
    pairs, _ = _load(tmp_path, [{"prompt": "q", "response_1": "a", "response_2": "b", "labels": labels}])
    assert _texts(pairs) == [("q", "b", "a")]
    votes = [(one.annotator, one.prefers_first) for one in pairs[0].annotations]
    assert votes == [("ann", True), ("7", True), ("anonymous-3", False)]


def _preference(strength: int, *labels: int, split: str = "train", prompt: str = "q") -> dict[str, Any]:
    """A row of nvidia/HelpSteer2's folder `preference`."""
    return {
        "split": split, "prompt": prompt, "response_1": "a", "response_2": "b", "preference_strength": strength,
        "preference_statement": "s", "preference_elaboration": "e",
        "three_most_similar_preferences": [{"statement": "s", "elaboration": "e", "strength": strength}],
        "all_preferences_unprocessed": [{"strength": one, "justification": "j"} for one in labels],
    }  # fmt: skip


def test_helpsteer2_preferences_keep_their_own_verdict(tmp_path: Path) -> None:
    rows = [
        _preference(-2, -2, 1, 1, -100),
        _preference(0, 1, -1, prompt="p"),
        _preference(1, 1, split="val", prompt="v"),
    ]
    pairs, report = _load(tmp_path, rows, margins="score_difference", margin_scale=0.5)
    assert [(pair.prompt, pair.chosen, pair.split, pair.target_margin) for pair in pairs] == [
        ("q", "a", "train", 1.0), ("v", "b", "validation", 0.5),
    ]  # fmt: skip
    assert [one.prefers_first for one in pairs[0].annotations] == [True, False, False]
    assert _count(report, "label_tie") == 1


def test_rows_of_chosen_and_rejected_may_be_labels(tmp_path: Path) -> None:
    rows = [
        {"prompt": "q", "chosen": one, "rejected": other, "annotator": name}
        for one, other, name in (("a", "b", "ann"), ("b", "a", "bo"), ("a", "b", "cy"))
    ]
    pairs, _ = _load(tmp_path, rows, format="labels")
    assert _texts(pairs) == [("q", "a", "b")]
    assert [one.prefers_first for one in pairs[0].annotations] == [True, False, True]
    pairs, report = _load(tmp_path, rows)  # without a word, each row is a pair of its own
    assert (len(pairs), _count(report, "contradiction")) == (3, 2)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"preferred": "a"}, "preferred is 'a'; expected response_1, response_2 or tie"),
        ({"preferred": 0}, "preferred is '0'"),
        ({"annotator": " "}, "annotator is ' '; expected a name"),
        ({"preferred": None}, "says neither 'preferred'"),
        ({"labels": "x"}, "labels is str; expected a list of labels"),
        ({"labels": ["x"]}, "labels[0] is str; expected an object"),
        ({"response_2": None}, "is null; expected text"),
    ],
)
def test_bad_labels_are_named_by_row(tmp_path: Path, change: dict[str, Any], words: str) -> None:
    rows = [_label("ann", "response_1"), _label("bo", "response_2", prompt="p") | change]
    with pytest.raises(DataError) as caught:
        _load(tmp_path, rows)
    assert words in caught.value.message
    assert caught.value.where == "rows.jsonl:2"
    assert len(_load(tmp_path, rows, drop_invalid=True)[0]) == 1


def test_margins_of_labels_need_a_strength(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="the labels of this pair have none"):
        _load(tmp_path, [_label("ann", "response_1")], margins="score_difference")


# ---- columns


def test_columns_are_renamed_swapped_and_hidden() -> None:
    row = {"better": "a", "worse": "b", "chosen": "not this", "split": "dev", "extra": 1}
    assert rename(row, {"chosen": "better", "rejected": "worse", "split": None}) == {
        "chosen": "a", "rejected": "b", "extra": 1,
    }  # fmt: skip
    assert rename({"chosen": 1, "rejected": 2}, {"chosen": "rejected", "rejected": "chosen"}) == {
        "chosen": 2, "rejected": 1,
    }  # fmt: skip
    assert rename(row, {"chosen": "gone"}) == {key: row[key] for key in row if key != "chosen"}
    with pytest.raises(ConfigError, match="has no column 'instruction'; it has 'better', 'worse'") as caught:
        check_columns([row], {"prompt": "instruction"}, "f.jsonl")
    assert caught.value.where == "data.columns.prompt"
    for name in ("target_margin", "annotations", "split"):
        with pytest.raises(ConfigError, match="has no column 'margn'"):
            check_columns([row], {name: "margn"}, "f.jsonl")


def test_columns_of_a_file_are_mapped(tmp_path: Path) -> None:
    rows = [{"instruction": f"q{i}", "better": "a", "worse": "b", "prompt": "system"} for i in range(2)]
    columns = {"prompt": "instruction", "chosen": "better", "rejected": "worse"}
    assert _texts(_load(tmp_path, rows, columns=columns)[0]) == [("q0", "a", "b"), ("q1", "a", "b")]
    prompts, _ = load_prompts(tmp_path / "rows.jsonl", Options(layout=Layout(columns={"prompt": "instruction"})))
    assert [prompt.prompt for prompt in prompts] == ["q0", "q1"]


# ---- what is refused, and the option that decides


@pytest.mark.parametrize(
    ("row", "layout", "where", "words"),
    [
        (FOUR, {"rating": "overall_score"}, "data.pairing", "best_vs_worst, best_vs_random or all"),
        (FOUR, {"pairing": "all"}, "data.rating", "fine-grained_score, overall_score, helpfulness"),
        (FOUR, {"pairing": "all", "rating": "quality"}, "data.rating", "no rating 'quality'"),
        (_helpsteer("q", "a", 3), {"pairing": "all"}, "data.rating", "helpfulness, correctness, coherence"),
        ({"prompt": "q", "responses": ["a", "b"]}, {"pairing": "all"}, "data.columns", "without 'ranks' or 'scores'"),
        (
            {"prompt": "q", "response": "a", "score": 1, "responses": ["a"], "ranks": [1]}, {"pairing": "all"},
            "data.format", "read as ranking or as rated_rows",
        ),
        ({"prompt": "q", "chosen": "a", "rejected": "b"}, {"pairing": "all"}, "data.pairing", "no effect on pairs"),
        (
            {"prompt": "q", "responses": ["a"], "ranks": [1]}, {"pairing": "all", "margins": "score_difference"},
            "data.margins", "difference of ranks",
        ),
        (_label("ann", "tie"), {"min_gap": 1.0}, "data.min_gap", "no effect on labels"),
        (_label("ann", "tie"), {"rating": "x"}, "data.rating", "no effect on labels"),
        (FOUR, {"columns": {"prompt": "question"}}, "data.columns.prompt", "no column 'question'; it has 'source'"),
    ],
)  # fmt: skip
def test_what_could_mean_two_things_is_refused(
    tmp_path: Path, row: dict[str, Any], layout: dict[str, Any], where: str, words: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        _load(tmp_path, ["broken", row], **layout)
    assert caught.value.where == where
    assert words in caught.value.message


def test_a_source_may_start_with_a_prompt_without_responses(tmp_path: Path) -> None:
    pairs, report = _load(tmp_path, [_ultrafeedback("None?"), FOUR], pairing="best_vs_worst", rating="overall_score")
    assert (len(pairs), _count(report, "single_response")) == (1, 1)


def test_the_only_rating_needs_no_name(tmp_path: Path) -> None:
    rows = [{"prompt": "q", "response": text, "score": score} for text, score in (("a", 1), ("b", 2))]
    assert _texts(_load(tmp_path, rows, pairing="all")[0]) == [("q", "b", "a")]


@pytest.mark.parametrize(
    ("block", "words"),
    [
        ({"columns": {"question": "q"}}, "columns.question: no such column is read, expected one of prompt, chosen"),
        ({"columns": {"chosen": "a", "rejected": "a"}}, "got 'a' for two columns"),
        ({"margin_scale": 2.0}, "no effect with data.margins none"),
        ({"pairing": "best"}, "best_vs_worst"),
        ({"rating": {}}, "expected a rating's name"),
        ({"min_gap": -1.0}, "greater than or equal to 0"),
    ],
)
def test_the_config_refuses_what_no_source_could_mean(block: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match="validation error") as caught:
        Data.model_validate({"preferences": "x.jsonl", **block})
    assert words in str(caught.value)
    with pytest.raises(ValueError, match=r"has no effect with data\.world"):
        Data.model_validate({"world": "helpdesk", "pairing": "all"})


def test_the_layout_of_a_config_is_what_stages_read() -> None:
    given: dict[str, Any] = {
        "columns": {"prompt": "instruction"},
        "pairing": "all",
        "rating": {"a": 1.0},
        "split": "train_prefs",
    }
    data = Data.model_validate({"preferences": "x.jsonl", **given})
    assert Layout.from_config(json.loads(json.dumps(data.layout()))) == Layout(**given)
    assert Layout.from_config(Data.model_validate({"preferences": "x.jsonl"}).layout()) == Layout()
    assert "prompt" in COLUMNS
