"""Fills the tables of README.md and of the pages under docs from a home's results: nothing is typed by hand.

A table stands between `<!-- COMPARISON:TABLE -->` and `<!-- end -->`; the tables are the functions below. A number
within the prose stands between `<!-- COMPARISON = PATH -->` and `<!-- end -->`; `fill_values.py` says what a path is.

    python -m benchmarks.fill_docs --home mlruns [--page README.md]...
"""

from __future__ import annotations

import argparse
import functools
import json
import math
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from benchmarks.fill_findings import FINDINGS
from benchmarks.fill_values import INLINE, value
from workbench.report import wording, wording_curves
from workbench.report.wording import interval, number

ROOT = Path(__file__).parents[1]
PAGES = (
    ROOT / "README.md",
    *(ROOT / "docs" / f"{name}.md" for name in ("results", "findings", "agreement", "sisters", "data")),
)
MOST_POINTS = 12
BLOCK = re.compile(r"(<!-- ([\w.-]+):([\w-]+) -->\n).*?<!-- end -->", re.S)


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A markdown table."""
    lines = ["| " + " | ".join(header) + " |", "|" + "---|" * len(header)]
    return "\n".join([*lines, *("| " + " | ".join(row) + " |" for row in rows)]) + "\n"


def estimate(value: Any) -> str:
    """An estimate with its interval, an en dash without one."""
    return interval(value).replace(wording.MISSING, "–") if not value or value.get("value") is None else interval(value)


def cpu(cost: Any) -> str:
    """CPU time."""
    return wording.seconds(cost["cpu_s"])


def arms(results: Any) -> str:
    """Every arm: quality, KL, length, cost."""
    header = ("arm", "win rate", "gold", "gain in gold", "proxy", "KL, nats", "tokens", "CPU, own", "CPU, all")
    names = ("win_rate", "gold_reward", "gold_gain", "proxy_reward")
    rows = [
        [label, *(estimate(arm[name]) for name in names), wording.kl_text(arm["seq_kl"]),
         estimate(arm["response_tokens"]), cpu(arm["cost"]["own"]), cpu(arm["cost"]["with_upstream"])]
        for label, arm in results["arms"].items()
    ]  # fmt: skip
    return table(header, rows)


def short(results: Any) -> str:
    """The README's choice of columns."""
    header = ("arm", "win rate against SFT", "gold reward", "proxy reward", "KL, nats", "CPU, with upstream")
    names = ("win_rate", "gold_reward", "proxy_reward")
    rows = [
        [label, *(estimate(arm[name]) for name in names), wording.kl_text(arm["seq_kl"]),
         cpu(arm["cost"]["with_upstream"])]
        for label, arm in results["arms"].items()
    ]  # fmt: skip
    return table(header, rows)


def proxy(results: Any) -> str:
    """Arms where there is no gold."""
    rows = [
        [label, estimate(arm["proxy_reward"]), estimate(arm["proxy_gain"]), wording.kl_text(arm["seq_kl"])]
        for label, arm in results["arms"].items()
    ]
    return table(("arm", "proxy", "gain in proxy", "KL, nats"), rows)


def against(results: Any) -> str:
    """Win rates against the SFT: raw, at equal length, by the null judge, and what could have been found."""
    rows = []
    for label, arm in results["arms"].items():
        if not (rate := arm["win_rate"]):
            continue
        longest = next(one for one in arm["null_win_rates"] if one["judge"] == "null/longest")
        controlled = arm["win_rate_length_controlled"]
        told = (
            controlled["method"].split(":")[0] if controlled and controlled["value"] is None else estimate(controlled)
        )
        shown = [wording.p_text(rate["p_holm"]), number(rate["minimum_detectable_effect"])]
        rows.append([label, estimate(rate), *shown, told, estimate(longest)])
    return table(("arm", "win rate", "p (Holm)", "detectable", "at equal length", "longer text wins"), rows)


def duels(results: Any) -> str:
    """Every two arms."""
    rows = [
        [f"{one['a']} : {one['b']}", estimate(one["win_rate"]), wording.p_text(one["p_holm"]),
         number(one["minimum_detectable_effect"])]
        for one in results["head_to_head"]
    ]  # fmt: skip
    return table(("pair", "win rate of the first", "p (Holm)", "detectable"), rows)


def agreement(results: Any) -> str:
    """Implicit against explicit reward on every set."""
    names = ("agreement", "kappa", "implicit_accuracy", "explicit_accuracy", "spearman_margins")
    rows = [
        [name, *(estimate(entry[field]) for field in names)] for name, entry in results["agreement"].items() if entry
    ]
    header = ("pairs", "agreement", "kappa", "implicit accuracy", "explicit accuracy", "Spearman of margins")
    return table(header, rows)


def points(results: Any, arm: str, first: str) -> str:
    """One arm's line on the frontier, its test point left out; of long lines every few points and the last."""
    rows = [
        [one["label"], wording.kl_text(one["seq_kl"]), estimate(one["proxy_reward"]), estimate(one["gold_reward"])]
        for one in results["frontier"]
        if one["arm"] == arm and not one["label"].endswith("(test)") and one.get("selector", "own") == "own"
    ]
    step = math.ceil(len(rows) / MOST_POINTS)
    return table((first, "KL", "proxy", "gold"), rows[:-1:step] + rows[-1:])


def forms(results: Any) -> str:
    """Over-optimization: falls and fitted forms."""
    names = ("drop_from_peak", "alpha", "beta", "peak_kl")
    rows = [
        [
            wording_curves.turning_arm(one),
            one["form"],
            *(estimate(one[name]) for name in names),
            number(one.get("residual_rms")) if one.get("residual_rms") is not None else "–",
            wording.p_text(one.get("lack_of_fit_p")) if one.get("lack_of_fit_p") is not None else "–",
        ]
        for one in results["overoptimization"]
    ]
    header = (
        "arm",
        "form",
        "fall of gold from its best point",
        "alpha",
        "beta",
        "fitted peak, KL",
        "residual",
        "p of the fit",
    )
    return table(header, rows)


def turns(results: Any) -> str:
    """Over-optimization: onset, proxy since gold's best point, gap, flag; a row an arm."""
    rows = [
        [
            wording_curves.turning_arm(one),
            *(estimate(one.get(name)) for name in ("drop_from_peak", "proxy_since_peak", "onset_kl", "gap")),
            {True: "yes", False: "no"}.get(one.get("goodhart"), "–"),
        ]
        for one in wording_curves.turns(results)
    ]
    header = ("arm", "gold from its best point", "proxy since", "onset, KL", "proxy less gold, SD", "Goodhart")
    return table(header, rows)


def matched(results: Any) -> str:
    """Gold of every arm at the same KLs."""
    rows = [one for one in results["matched_kl"] if one["against"] is None]
    kls = sorted({one["kl"] for one in rows})
    found = {(one["arm"], one["kl"]): estimate(one["estimate"]) for one in rows}
    arms_ = dict.fromkeys(one["arm"] for one in rows)
    return table(
        ("arm", *(f"KL {kl:g}" for kl in kls)), [[arm, *(found.get((arm, kl), "–") for kl in kls)] for arm in arms_]
    )


def area(results: Any) -> str:
    """Mean gold over the KLs in common, and differences."""
    rows = [
        [one["arm"] + (f" less {one['against']}" if one["against"] else ""),
         "–" if one["kl_to"] is None else f"0 to {number(one['kl_to'])}", estimate(one["estimate"]), one["kl_kind"]]
        for one in results["frontier_area"]
    ]  # fmt: skip
    return table(("arm", "KL", "mean gold over KL", "kind of KL"), rows)


def reward_model(results: Any) -> str:
    """One sentence on each reward model."""
    told = []
    for name, one in results["reward_models"].items():
        parts = {"accuracy on labels": "accuracy", "on gold": "accuracy_gold", "ECE": "ece", "Brier": "brier"}
        shown = ", ".join(f"{words} {estimate(one[field])}" for words, field in parts.items() if one[field])
        told.append(f"Reward model `{name}`: {shown}, ties {estimate(one['tie_rate'])}, n = {one['accuracy']['n']}.")
    return "\n".join(told) + "\n"


TABLES: dict[str, Callable[[Any], str]] = {
    "arms": arms,
    "short": short,
    "proxy": proxy,
    "against": against,
    "duels": duels,
    "agreement": agreement,
    "forms": forms,
    "turns": turns,
    "matched": matched,
    "area": area,
    "reward-model": reward_model,
    "ppo-points": lambda results: points(results, "ppo", "PPO, on validation prompts"),
    "bon-points": lambda results: points(results, "best_of_n", "best-of-n, on test prompts"),
    **FINDINGS,
}


def fill(page: Path, home: Path) -> list[str]:
    """Rewrites the tables of one page; returns the comparisons that have no results in the home, left as they were."""
    missing = []

    @functools.cache
    def results_of(comparison: str) -> Any:
        path = home / "results" / comparison / "results.json"
        return json.loads(path.read_text(encoding="utf-8")) if path.exists() else None

    def made(block: re.Match[str], tell: Callable[[Any], str]) -> str:
        if (results := results_of(block[2])) is None:
            missing.append(block[2])
            return block[0]
        return block[1] + tell(results) + "<!-- end -->"

    text = BLOCK.sub(lambda block: made(block, TABLES[block[3]]), page.read_text(encoding="utf-8"))
    text = INLINE.sub(lambda block: made(block, lambda results: value(results, block[3])), text)
    page.write_text(text, encoding="utf-8")
    return sorted(set(missing))


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--home", type=Path, required=True)
    parser.add_argument("--page", type=Path, action="append")
    options = parser.parse_args()
    filled = {str(page): fill(page, options.home) for page in options.page or PAGES}
    print(json.dumps({"pages": [str(Path(page).name) for page in filled], "without_results": filled}))


if __name__ == "__main__":
    main()
