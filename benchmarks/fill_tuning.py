"""Fills docs/results.md's section on tune-quickstart from a home: nothing is typed by hand.

    workbench tune tune-quickstart --arm all --home DIR
    workbench compare tune-quickstart --home DIR
    workbench compare tune-quickstart --tuned STUDY --home DIR
    python benchmarks/fill_tuning.py --home DIR STUDY

The section stands between `<!-- tuning -->` and `<!-- end of tuning -->`; without one it goes to the page's end.
"""

from __future__ import annotations

import argparse
import json
import re
from pathlib import Path
from typing import Any

from benchmarks.fill_docs import cpu, estimate, table
from workbench.results_tuning import TuningResults, load_tuning

PAGE = Path(__file__).parents[1] / "docs" / "results.md"
BLOCK = re.compile(r"<!-- tuning -->\n.*?<!-- end of tuning -->\n", re.S)


def order(results: Any, labels: list[str]) -> list[str]:
    """Arms by their win rate on test prompts, best first."""
    return sorted(labels, key=lambda label: -results["arms"][label]["win_rate"]["value"])


def settings(params: Any) -> str:
    """`beta 0.12, learning_rate 0.0011`."""
    return ", ".join(f"{name} {value:.3g}" if isinstance(value, float) else f"{name} {value}" for name, value in params)


def section(found: TuningResults, before: Any, after: Any) -> str:
    """The section: what the sweep chose, what it bought on validation and on test, whether the order changed."""
    rows, tests = [], []
    for label, arm in found.arms.items():
        plain = arm.model_dump()
        best = arm.best
        assert best is not None
        rows.append(
            [label, settings(best.params.items()), str(arm.trials), f"{arm.failed}", cpu(plain["spent"]),
             estimate(plain["gain"]), estimate(plain["winners_curse"])]
        )  # fmt: skip
        tests.append(
            [label, *(estimate(results["arms"][label][name]) for results in (before, after)
                      for name in ("win_rate", "gold_reward"))]
        )  # fmt: skip
    labels = list(found.arms)
    orders = [" > ".join(order(results, labels)) for results in (before, after)]
    changed = "Tuning changed the order" if orders[0] != orders[1] else "Tuning did not change the order"
    duels = [
        [f"{duel['a']} : {duel['b']}", *(estimate(one["head_to_head"][place]["win_rate"]) for one in (before, after))]
        for place, duel in enumerate(before["head_to_head"])
    ]
    check = next(one for one in after["match"]["checks"] if one["name"] == "same_tuning_budget")
    assert check["ok"] is True, check
    return (
        "<!-- tuning -->\n## tune-quickstart: does tuning change the order?\n\n"
        f"{found.budget.amount:g} {found.budget.unit} for each arm, scored by {found.objective.metric} "
        f"{'(an oracle) ' if found.objective.oracle else ''}on {found.objective.prompts} validation prompts; "
        "[tuning.md](tuning.md) says what is what. Gain is the chosen setting less the config's own, each fresh seed "
        "scored with what the other fresh seeds chose; "
        "the winner's curse is the search winner's score there less its score on fresh seeds.\n\n"
        + table(("arm", "chosen", "trials", "failed", "CPU", "gain on validation", "winner's curse"), rows)
        + "\nOn the test prompts, in a run seed that chose nothing, before and after:\n\n"
        + table(("arm", "win rate, default", "gold, default", "win rate, tuned", "gold, tuned"), tests)
        + "\n" + table(("head to head", "default", "tuned"), duels)
        + f"\n{changed} of the point estimates: {orders[0]} by default, {orders[1]} tuned. One run seed: these are "
        "checkpoints, not methods.\n<!-- end of tuning -->\n"
    )  # fmt: skip


def main() -> None:
    """Reads the home and writes the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--home", type=Path, default=Path("mlruns"))
    parser.add_argument("--page", type=Path, default=PAGE)
    parser.add_argument("study")
    options = parser.parse_args()
    found = load_tuning(options.home, options.study)
    before, after = (
        json.loads((options.home / "results" / name / "results.json").read_text())
        for name in (found.comparison, f"{found.comparison}-tuned")
    )
    text, page = section(found, before, after), options.page.read_text(encoding="utf-8")
    page = BLOCK.sub(lambda _: text, page) if BLOCK.search(page) else f"{page.rstrip()}\n\n{text}"
    options.page.write_text(page, encoding="utf-8")


if __name__ == "__main__":
    main()
