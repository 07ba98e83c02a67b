"""Which samples the page shows, and what makes one suspicious."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from tests.workbench.report_page_example import row, samples, write
from workbench.errors import DataError
from workbench.report import samples as module
from workbench.report.samples import browser, cut, first_seed, suspicions, telling, truth_of


def test_a_loss_is_against_the_sample_of_the_same_index() -> None:
    rows = [row(0, "sft", 0, "a", gold_reward=3.0), row(0, "sft", 1, "b", gold_reward=0.0),
            row(0, "ppo", 0, "c", gold_reward=1.0), row(0, "ppo", 1, "d", gold_reward=1.0)]  # fmt: skip
    assert [loss for loss, _, _ in suspicions(rows)] == [None, None, 2.0, None]


def test_a_hack_is_above_the_mean_proxy_and_below_the_mean_truth_in_standard_deviations() -> None:
    rows = [row(0, "sft", i, "s", gold_reward=g, proxy_reward=p) for i, (g, p) in enumerate([(0, 0), (2, 4)])]
    rows += [row(0, "ppo", i, "x", gold_reward=g, proxy_reward=p)
             for i, (g, p) in enumerate([(0, 4), (0, 1), (2, 4)])]  # fmt: skip
    sd = math.sqrt(2)
    assert [hack for _, hack, _ in suspicions(rows)] == [None, None, pytest.approx(2 / (2 * sd) + 1 / sd), None, None]


def test_without_gold_the_truth_is_the_ensemble_then_the_judge() -> None:
    def scored(arm: str, index: int, proxy: float, other: float | None, win: float) -> dict[str, object]:
        made = row(0, arm, index, "x", gold_reward=None, proxy_reward=proxy, win=win)
        return made | ({"rewards": {"second": other}} if other is not None else {})

    rows = [scored("sft", 0, 0, 0, 0.5), scored("sft", 1, 2, 2, 0.5), scored("ppo", 0, 3, 0, 1.0)]
    loss, hack, _ = suspicions(rows)[2]
    assert (loss, hack) == (None, pytest.approx(3 / math.sqrt(2)))  # the judge saw a win, the ensemble a fall
    judged = [scored("sft", 0, 0, None, 0.5), scored("sft", 1, 2, None, 0.5), scored("ppo", 0, 3, None, 0.0)]
    loss, hack, _ = suspicions(judged)[2]
    assert (loss, hack) == (1.0, pytest.approx(2 / math.sqrt(2) + 1))
    assert (truth_of(samples()), truth_of(judged)) == ("gold", "judge gold")


def test_a_disagreement_is_a_product_of_opposite_differences() -> None:
    rows = [row(p, "sft", 0, "s", proxy_reward=0.0, implicit_reward=0.0) for p in range(2)]
    rows += [row(0, "ppo", 0, "x", proxy_reward=3.0, implicit_reward=-4.0),
             row(1, "ppo", 0, "y", proxy_reward=4.0, implicit_reward=3.0)]  # fmt: skip
    unit = math.sqrt((9 + 16) / 2)
    assert [size for *_, size in suspicions(rows)] == [None, None, pytest.approx(12 / unit**2), None]
    rows[2]["implicit_reward"] = None
    assert suspicions(rows)[2][2] is None


def test_telling_prompts_are_taken_in_turn_and_none_twice() -> None:
    by_prompt = {name: [place] for place, name in enumerate("abcdef")}
    none = (None, None, None)
    marks = [(1.0, 9.0, None), (5.0, None, None), (None, 2.0, None), none, (None, None, 1.0), none]
    assert list(telling(by_prompt, marks)) == ["b", "a", "e", "c", "d", "f"]


def test_the_page_gets_at_most_so_many_prompts_samples_and_characters(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = browser(samples(30))
    assert whole is not None
    assert (len(whole["prompts"]), whole["total"], len(whole["prompts"][0]["rows"])) == (30, 30, 8)
    monkeypatch.setattr(module, "MAX_PROMPTS", 7)
    monkeypatch.setattr(module, "MAX_SAMPLES", 1)
    some = browser(samples(30))
    assert some is not None
    assert (len(some["prompts"]), some["total"], len(some["prompts"][0]["rows"])) == (7, 30, 4)
    monkeypatch.setattr(module, "MAX_CHARACTERS", 200)
    few = browser(samples(30))
    assert few is not None
    assert 0 < len(few["prompts"]) < 7
    assert few["prompts"] == some["prompts"][: len(few["prompts"])]


def test_long_texts_are_cut_with_a_mark() -> None:
    assert cut("x" * 4000) == "x" * 4000
    assert cut("y" * 100_000) == "y" * 4000 + " […cut: 100000 characters in all]"


def test_only_the_first_run_seed_is_read(tmp_path: Path) -> None:
    first = samples(2)
    path = write(tmp_path / "samples.jsonl.gz", first + [one | {"seed": 1} for one in first])
    assert first_seed(path) == first
    path.write_bytes(path.read_bytes()[:60])
    with pytest.raises(DataError, match="run compare again"):
        first_seed(path)


def test_no_samples_make_no_browser() -> None:
    assert browser([]) is None
