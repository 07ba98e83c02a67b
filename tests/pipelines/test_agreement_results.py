"""What a finished comparison says about its two rewards: every part is there, and the parts fit each other."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from workbench.results import Results, load_results


@pytest.fixture(scope="module")
def results(smoke_home: Path) -> Results:
    return load_results(smoke_home / "results" / "smoke" / "results.json")


def test_the_last_checkpoint_agrees_as_the_selected_one_does(results: Results) -> None:
    """selection.rule is last: the end of the trajectory is the held-out set's own figure."""
    last = {one.set: one for one in results.agreement_trajectory if one.arm == "dpo"}
    heldout, ood = results.agreement["heldout"], results.agreement["ood"]
    assert heldout is not None
    assert ood is not None
    for name, entry in (("heldout", heldout), ("ood", ood)):
        assert last[name].agreement.value == pytest.approx(entry.agreement.value), name
        assert entry.implicit_accuracy is not None
        assert entry.explicit_accuracy is not None
        assert last[name].implicit_accuracy is not None
        assert last[name].implicit_accuracy.value == pytest.approx(entry.implicit_accuracy.value), name
        difference = last[name].accuracy_difference
        assert difference is not None
        assert entry.accuracy_difference is not None
        assert difference.value == pytest.approx(entry.accuracy_difference.value)
        assert difference.value == pytest.approx(
            (entry.explicit_accuracy.value or 0) - (entry.implicit_accuracy.value or 0)
        )
    steps = [one.step for one in results.agreement_trajectory if one.set == "heldout" and one.arm == "dpo"]
    assert steps == sorted(steps)
    assert len(steps) > 1


def test_truth_and_labels_are_named(results: Results) -> None:
    heldout = results.agreement["heldout"]
    assert heldout is not None
    assert (heldout.truth, heldout.standardized) == ("label", None)
    assert heldout.against_gold is not None
    for name, entry in results.agreement.items():
        assert entry is not None
        assert entry.truth == ("label" if name == "heldout" else "gold"), name
        assert entry.length is not None
        if entry.calibration is not None:
            assert entry.calibration.labels == "fresh", name
        if name.startswith("on_policy/"):
            assert entry.standardized is not None
            assert sum(bucket.pairs for bucket in entry.by_gold_gap) == entry.n_pairs
    sft, ppo = results.agreement["on_policy/sft"], results.agreement["on_policy/ppo"]
    assert sft is not None
    assert ppo is not None
    assert sft.by_kl == []  # its log-ratio to itself is 0
    assert sum(bucket.pairs for bucket in ppo.by_kl) == ppo.n_pairs


def test_one_run_seed_settles_no_statement_on_methods(results: Results) -> None:
    found = results.generalization
    assert found is not None
    assert found.holds == "unresolved"
    assert "run seed" in found.reason
    assert (found.in_distribution, found.out_of_distribution) == ("on_policy/sft", "ood")
    optimized = {one.set: one.optimized for one in found.shifts}
    assert optimized["on_policy/ppo"] == optimized["on_policy/best_of_n"] == "explicit"
    assert optimized["on_policy/dpo"] == optimized["on_policy/best_of_n-implicit"] == "implicit"
    assert optimized["ood"] is None
    moved = next(one for one in found.shifts if one.set == "ood")
    assert moved.difference_change.value == pytest.approx(found.difference.value)


def test_parts_stand_in_the_order_of_the_sets(results: Results) -> None:
    """Stages get their config with sorted keys; people get the arms as the config has them."""
    names = list(results.agreement)
    assert names.index("on_policy/ppo") < names.index("on_policy/best_of_n")
    assert results.generalization is not None
    for listed in ([one.set for one in results.generalization.shifts], [one.set for one in results.disagreements]):
        assert [names.index(name) for name in listed] == sorted(names.index(name) for name in listed)


def test_disagreements_come_with_their_texts(results: Results, smoke_home: Path) -> None:
    listed: list[dict[str, Any]] = json.loads(
        (smoke_home / "results" / "smoke" / "disagreements.json").read_text(encoding="utf-8")
    )
    assert {one["set"] for one in listed} <= set(results.agreement)
    assert len(listed) >= len(results.disagreements) > 0
    shown = [one.model_dump(mode="json") for one in results.disagreements]
    assert all(one in listed for one in shown)
    for one in listed:
        assert one["explicit_margin"] > 0
        assert one["implicit_margin"] > 0
        assert one["explicit_prefers"] != one["implicit_prefers"]
        assert one["prompt"].endswith("reply :")
    by_set = [[one["size"] for one in listed if one["set"] == name] for name in {one["set"] for one in listed}]
    assert all(sizes == sorted(sizes, reverse=True) for sizes in by_set)


def test_figures_and_report_show_them(smoke_home: Path) -> None:
    folder = smoke_home / "results" / "smoke"
    assert (folder / "figures" / "agreement_trajectory.png").is_file()
    page = (folder / "report.md").read_text(encoding="utf-8")
    for title in ("Over training", "Away from where they were fitted", "Disagreements that matter"):
        assert f"### {title}" in page
