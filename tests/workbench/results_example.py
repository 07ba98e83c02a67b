"""A results.json-shaped example with realistic numbers, for the tests of reports and tracking."""

from __future__ import annotations

import math
from typing import Any


def estimate(value: float | None, half: float = 0.1, **extra: Any) -> dict[str, Any]:
    ends = {"low": None, "high": None} if value is None else {"low": value - half, "high": value + half}
    return {"value": value, **ends, "n": 256, "n_unscored": 0} | {"method": "cluster-t by prompt"} | extra


def cost(wall_s: float) -> dict[str, float]:
    return {
        "wall_s": wall_s,
        "cpu_s": wall_s * 0.98,
        "gpu_s": 0.0,
        "flops": wall_s * 4e9,
        "tokens_trained": int(wall_s * 2000),
        "tokens_generated": int(wall_s * 1500),
        "reward_queries": int(wall_s * 50),
        "peak_memory_bytes": 900_000_000,
    }


def agreement(value: float) -> dict[str, Any]:
    return {
        "implicit_accuracy": estimate(value - 0.02, 0.02),
        "explicit_accuracy": estimate(value + 0.01, 0.02),
        "agreement": estimate(value, 0.02),
        "kappa": estimate(value - 0.4, 0.05),
        "spearman_margins": estimate(value - 0.15, 0.04),
        "spearman_within_prompt": estimate(value - 0.25, 0.04),
        "kendall_tau": estimate(value - 0.3, 0.04),
        "truth": "gold",
        "chance": estimate(value - 0.15, 0.02),
        "accuracy_difference": estimate(0.03, 0.02),
        "calibration": calibration(),
        "standardized": {
            "reference": "heldout",
            "agreement": estimate(value + 0.02, 0.03),
            "implicit_accuracy": estimate(value, 0.03),
            "explicit_accuracy": estimate(value + 0.03, 0.03),
        },
        "by_gold_gap": [
            {"low": low, "high": high, "pairs": 400, "agreement": estimate(value - 0.1, 0.04)}
            | {"implicit_accuracy": estimate(value - 0.12, 0.04), "explicit_accuracy": estimate(value - 0.1, 0.04)}
            for low, high in ((None, 1.0), (1.0, None))
        ],
    }


def calibration() -> dict[str, Any]:
    found: dict[str, Any] = {"labels": "fresh"}
    for side, slope in (("implicit", 1.1), ("explicit", 0.6)):
        found |= {f"{side}_ece": estimate(0.04, 0.03), f"{side}_brier": estimate(0.19, 0.02)}
        found[f"{side}_slope"] = estimate(slope, 0.2)
        found[f"{side}_reliability"] = [
            {"predicted": p, "preferred": estimate(0.5 + slope * (p - 0.5), 0.05), "pairs": 40} for p in (0.2, 0.5, 0.8)
        ]
    return found


def agreement_parts() -> dict[str, Any]:
    """The parts of results.json beside `agreement` that are about the two rewards."""
    return {
        "agreement_trajectory": [
            {
                "arm": "dpo",
                "step": step,
                "set": name,
                "agreement": estimate(0.7 + step / 1000, 0.03),
                "implicit_accuracy": estimate(0.68 + step / 1000, 0.03),
                "explicit_accuracy": estimate(0.73, 0.03),
                "accuracy_difference": estimate(0.03, 0.03),
                "seq_margin": estimate(step / 200, 0.05),
            }
            for step in (25, 50)
            for name in ("heldout", "ood")
        ],
        "generalization": {
            "statement": "The implicit reward loses more accuracy out of distribution",
            "source": "Lin et al. 2024",
            "in_distribution": "on_policy/sft",
            "out_of_distribution": "ood",
            "difference": estimate(0.04, 0.03),
            "holds": "unresolved",
            "reason": "1 run seed(s)",
            "reference": "on_policy/sft",
            "shifts": [
                {"set": "on_policy/ppo", "kind": "on_policy", "optimized": "explicit"}
                | dict.fromkeys(("implicit_change", "explicit_change", "difference_change"), estimate(-0.05, 0.03))
                | {"difference": estimate(-0.02, 0.03)}
            ],
        },
        "disagreements": [
            {
                "set": "heldout",
                "seed": 0,
                "prompt_id": "p0",
                "prompt": "felix has a wrong clock ; reply :",
                "explicit_prefers": "hi felix , we are happy to help .",
                "implicit_prefers": "so sorry about the wrong clock .",
                "explicit_margin": 2.1,
                "implicit_margin": 1.2,
                "gold_margin": -0.8,
                "size": 1.4,
            }
        ],
    }


def frontier() -> list[dict[str, Any]]:
    points: list[dict[str, Any]] = []
    for step, kl in enumerate((0.4, 2.0, 5.0, 9.0, 15.0, 24.0, 38.0)):
        gold = 1.3 * math.sqrt(kl) * (0.62 - 0.075 * math.sqrt(kl))
        points.append(_point("ppo", f"update {7 * step}", kl, 0.55 * math.sqrt(kl), gold, 0.18))
    for step, kl in enumerate((0.8, 3.0, 8.0, 14.0, 19.0)):
        gold = 0.9 * math.sqrt(kl) * (0.60 - 0.07 * math.sqrt(kl))
        points.append(_point("dpo", f"step {25 * step}", kl, 0.36 * math.sqrt(kl), gold, 0.17))
    for n in (1, 2, 4, 8, 16):
        kl = math.log(n) - (n - 1) / n
        gold = 0.95 * math.sqrt(kl) - 0.05 * kl
        points.append(_point("best_of_n", f"n={n}", kl, 0.8 * math.sqrt(kl), gold, 0.15, kind="bound"))
    return points


def _point(
    arm: str, label: str, kl: float, proxy: float, gold: float, half: float, kind: str = "mc_k1"
) -> dict[str, Any]:
    spread = 0.0 if kind == "bound" else 0.05 * kl
    return {
        "arm": arm,
        "label": label,
        "seq_kl": estimate(kl, spread, kl_kind=kind),
        "proxy_reward": estimate(proxy, half / 2),
        "gold_reward": estimate(gold, half),
        "win_rate": estimate(min(0.5 + gold / 5, 0.95), 0.04),
    }


def _arm(kind: str, gold: float, proxy: float, kl: float, win: float | None, wall_s: float) -> dict[str, Any]:
    baseline = {"baseline": "sft", "judge": "gold"}
    rate = None if win is None else estimate(win, 0.03, **baseline)
    return {
        "kind": kind,
        "selected": None if kind == "sft" else "step-50",
        "selection": None if kind == "sft" else {"checkpoint": "step-50", "step": 50, "rule": "last"},
        "gold_reward": estimate(gold, 0.12),
        "proxy_reward": estimate(proxy, 0.06),
        "own_objective": estimate(proxy - 0.1 * kl, 0.08),
        "seq_kl": estimate(kl, 0.05 * kl, kl_kind="bound" if kind == "best_of_n" else "mc_k1"),
        "win_rate": rate,
        "win_rates": [rate] if rate else [],
        "win_rate_length_controlled": None if win is None else estimate(win - 0.02, 0.03),
        "response_tokens": estimate(22.5, 0.5),
        "eos_rate": estimate(0.97, 0.01),
        "diverged": None,
        "by_seed": [],
        "cost": {"own": cost(wall_s), "with_upstream": cost(wall_s + 40.0), "answer": cost(0.012)},
    }


def results(seeds: list[int] | None = None) -> dict[str, Any]:
    """One comparison: three arms, a PPO that over-optimises, a certificate that holds."""
    return {
        "schema": 1,
        "comparison": "quickstart",
        "seeds": {"data": 0, "sft": 0, "eval": 0, "runs": seeds or [0]},
        "mlflow": {"tracking_uri": "sqlite:////home/me/mlruns/mlflow.db", "experiment": "quickstart", "run_id": "r1"},
        "report": "/home/me/mlruns/reports/quickstart/report.md",
        "match": {
            "ok": True,
            "checks": [
                {"name": "one SFT", "ok": True, "detail": "sha256:ab12 for policy, reference, reward model"},
                {"name": "same pairs", "ok": True, "detail": "1987 pairs, sha256:cd34"},
                {"name": "tuning budget", "ok": "not_applicable", "detail": "nothing was tuned"},
            ],
        },
        "reward_models": {
            "main": {
                "accuracy": estimate(0.71, 0.03),
                "accuracy_gold": estimate(0.83, 0.03),
                "ece": estimate(0.04, 0.01),
                "brier": estimate(0.19, 0.01),
                "tie_rate": estimate(0.0, 0.0),
            }
        },
        "arms": {
            "sft": _arm("sft", 0.0, 0.0, 0.0, None, 30.0),
            "ppo": _arm("ppo", 1.25, 3.4, 38.0, 0.71, 75.0),
            "dpo": _arm("dpo", 1.15, 1.57, 19.0, 0.68, 41.0),
            "best_of_n": _arm("best_of_n", 1.23, 1.08, 1.83, 0.73, 12.0),
        },
        "head_to_head": [
            {"a": "ppo", "b": "dpo", "judge": "gold", "win_rate": estimate(0.53, 0.05), "p_value": 0.2, "p_holm": 0.4},
            {
                "a": "best_of_n",
                "b": "dpo",
                "judge": "gold",
                "win_rate": estimate(0.58, 0.05),
                "p_value": 0.001,
                "p_holm": 0.003,
            },
        ],
        "ranking": [
            {"arm": "best_of_n", "rating": estimate(0.9)},
            {"arm": "ppo", "rating": estimate(0.8)},
            {"arm": "dpo", "rating": estimate(0.7)},
            {"arm": "sft", "rating": estimate(0.0)},
        ],
        "frontier": frontier(),
        "overoptimization": [
            {
                "arm": "ppo",
                "form": "rl",
                "alpha": estimate(0.8, 0.1),
                "beta": estimate(0.12, 0.02),
                "peak_kl": estimate(17.0, 3.0),
                "drop_from_peak": estimate(0.42, 0.2, method="paired, best of 7 points"),
            },
            {
                "arm": "best_of_n",
                "form": "bon",
                "alpha": estimate(0.95, 0.1),
                "beta": estimate(0.05, 0.02),
                "peak_kl": None,
                "drop_from_peak": estimate(0.01, 0.03, method="paired, best of 5 points"),
            },
        ],
        "agreement": {
            "heldout": agreement(0.82),
            "on_policy/sft": agreement(0.74),
            "on_policy/ppo": agreement(0.63),
            "on_policy/dpo": agreement(0.66),
            "ood": None,
        },
        **agreement_parts(),
        "stages": [
            {"name": "sft", "instance": "sft", "key": "k1", "cached": True, "why": "hit", "wall_s": 30.0},
            {"name": "ppo", "instance": "ppo[ppo,seed=0]", "key": "k2", "cached": False, "why": "new", "wall_s": 75.0},
        ],
    }
