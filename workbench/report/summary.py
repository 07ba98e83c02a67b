"""report.md: the outcome of a comparison as markdown, from results.json alone."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from workbench.report import crossed, curves, limits, wording
from workbench.report.agreement import sections as agreement_sections
from workbench.report.decision import annotators, decision, diversity
from workbench.report.markup import escape as escape  # readers of this module look for it here
from workbench.report.markup import table as _table
from workbench.report.wording import interval

FIGURE_TITLES = {
    "frontier.png": "Reward against KL",
    "overoptimization.png": "Proxy and gold reward by KL",
    "tilt.png": "What each reward could give with a perfect optimizer",
    "agreement.png": "Implicit against explicit reward",
    "reliability.png": "Reliability of both rewards",
    "agreement_trajectory.png": "DPO's implicit reward over training",
}
COST_COLUMNS = {
    "cpu_s": ("CPU", wording.seconds),
    "gpu_s": ("GPU", wording.seconds),
    "wall_s": ("wall", wording.seconds),
    "flops": ("operations", wording.count),
    "tokens_trained": ("tokens trained", wording.count),
    "tokens_generated": ("tokens generated", wording.count),
    "reward_queries": ("reward queries", wording.count),
    "peak_memory_bytes": ("peak memory (bytes)", wording.count),
}


def write_report(results: Mapping[str, Any], path: Path, figures: Sequence[Path] = ()) -> Path:
    """Writes the report, atomically.

    Args:
        results: results.json, schema 1.
        path: Where report.md goes.
        figures: Images to show, linked relative to `path`.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.tmp")
    links = [(figure.name, os.path.relpath(figure, path.parent)) for figure in figures]
    temporary.write_text(markdown(results, links), encoding="utf-8")
    os.replace(temporary, path)
    return path


def markdown(results: Mapping[str, Any], figures: Sequence[tuple[str, str]] = ()) -> str:
    """The report's text.

    Args:
        results: results.json, schema 1.
        figures: (file name, link) of each image.
    """
    head = [f"# {escape(results.get('comparison', 'comparison'))}", f"**{escape(wording.verdict(results))}**"]
    parts = [_figures(figures) if name == "figures" else make(results) for name, make in SECTIONS.items()]
    return "\n\n".join(part for part in (*head, *parts) if part) + "\n"


def certificate(results: Mapping[str, Any], *, colored: bool = True) -> str:
    """The match certificate, check by check.

    Args:
        colored: With the HTML that colors it in MLflow and on code hosts.
    """
    ok, line = wording.certificate_line(results)
    tags = (f'<span style="color:{"green" if ok else "red"}">', "</span>") if colored else ("", "")
    marks = {True: "passed", False: '<span style="color:red">**FAILED**</span>' if colored else "**FAILED**"}
    rows = []
    for check in (results.get("match") or {}).get("checks") or ():
        state = check.get("ok")
        mark = marks[state] if isinstance(state, bool) else "not applicable"
        rows.append([escape(check.get("name")), mark, escape(check.get("detail") or "")])
    head = f"## Match certificate\n\n{tags[0]}{escape(line)}{tags[1]}"
    return head + ("\n\n" + _table(("check", "state", "detail"), rows).replace("---:|", "---|") if rows else "")


def arms(results: Mapping[str, Any]) -> str:
    """Every arm: quality, KL, length, checkpoint."""
    rows = []
    for label, arm in (results.get("arms") or {}).items():
        quality = [interval(arm.get(f)) for f in ("win_rate", "gold_reward", "gold_gain", "proxy_reward")]
        rest = [wording.kl_text(arm.get("seq_kl")), interval(arm.get("response_tokens")), interval(arm.get("eos_rate"))]
        state = "diverged" if arm.get("diverged") else escape(wording.checkpoint_text(arm))
        rows.append([escape(label), *quality, *rest, state])
    header = ("arm", "win rate", "gold", "gain in gold", "proxy", "KL (nats)", "tokens", "EOS rate", "checkpoint")
    against = wording.baseline_and_judge(results)
    text = "Values with 95% intervals."
    text += f" Win rates: {escape(against)}, ties half." if against else ""
    text += " Gain: gold less sft's, paired by prompt."
    if any((arm.get("seq_kl") or {}).get("kl_kind") == "bound" for arm in (results.get("arms") or {}).values()):
        text += " KL marked ≤ is best-of-n's bound log n - (n-1)/n relative to the sampled reference;"
        text += " the others are measured."
    return f"## Arms\n\n{_table(header, rows)}\n\n{text}"


def against(results: Mapping[str, Any]) -> str:
    """Win rates against the baseline by every judge, with length held equal, and by length alone."""
    rates = wording.rates_against(results.get("arms") or {})
    if not rates:
        return ""
    rows = [
        [
            escape(label),
            escape(wording.judge_text(rate)),
            interval(rate) if rate.get("value") is not None else escape(rate.get("method")),
            wording.p_text(rate.get("p_value")),
            wording.p_text(rate.get("p_holm")),
            wording.number(rate.get("minimum_detectable_effect")),
        ]
        for label, rate in rates
    ]
    header = ("arm", "judge", "win rate", "p", "p (Holm)", "detectable")
    text = "Detectable: the smallest true distance from 0.5 that this many prompts and seeds find with 80% power. "
    text += "Longer text wins: a judge that counts characters; what comes near it may be length."
    return f"## Against {escape(rates[0][1]['baseline'])}\n\n{_table(header, rows)}\n\n{text}"


def judges(results: Mapping[str, Any]) -> str:
    """Judges beside gold and proxy: what they were asked, and how they did."""
    rows = []
    for name, judge in (results.get("judges") or {}).items():
        reasons = ", ".join(f"{count} {reason}" for reason, count in (judge.get("unscored") or {}).items())
        counts = [wording.count(judge.get(field)) for field in ("pairs", "asked", "scored")]
        shares = [interval(judge.get(f)) for f in ("flip_rate", "first_shown_preferred", "ties", "null_model")]
        rows.append([escape(f"{name} ({judge.get('kind')})"), *counts, *shares, escape(reasons) or "none"])
    lines = [
        f"- judge {escape(name)} did not finish: {escape(reason)}"
        for name, reason in (results.get("judging_incomplete") or {}).items()
    ]
    if not rows and not lines:
        return ""
    header = ("judge", "pairs", "asked", "scored", "flip rate", "first shown", "ties", "null model", "unscored")
    parts = ["## Judges", *([_table(header, rows)] if rows else []), *(["\n".join(lines)] if lines else [])]
    return "\n\n".join(parts)


def by_seed(results: Mapping[str, Any]) -> str:
    """The arms in each run seed; empty with one."""
    rows = []
    for label, arm in (results.get("arms") or {}).items():
        for run in arm.get("by_seed") or ():
            shown = [interval(run.get(field)) for field in ("win_rate", "gold_reward", "proxy_reward")]
            state = f"diverged: {escape(run['diverged'])}" if run.get("diverged") else ""
            rows.append([f"{escape(label)}, seed {run['seed']}", *shown, wording.kl_text(run.get("seq_kl")), state])
    if len(wording.run_seeds(results)) < 2 or not rows:
        return ""
    return "## By run seed\n\n" + _table(("arm", "win rate", "gold", "proxy", "KL (nats)", ""), rows)


def duels(results: Mapping[str, Any]) -> str:
    """Every two arms head to head, and the ranking."""
    rows = [
        [
            f"{escape(duel['a'])} against {escape(duel['b'])}",
            escape(duel.get("judge", "")),
            interval(duel["win_rate"]),
            wording.p_text(duel.get("p_value")),
            wording.p_text(duel.get("p_holm")),
            wording.number(duel.get("minimum_detectable_effect")),
        ]
        for duel in results.get("head_to_head") or ()
    ]
    ranking = results.get("ranking") or ()
    order = ", ".join(f"{escape(entry['arm'])} {interval(entry.get('rating'))}" for entry in ranking)
    parts = [_table(("pair", "judge", "win rate of the first", "p", "p (Holm)", "detectable"), rows)] if rows else []
    if rows:
        parts.append("Detectable: the distance from 0.5 that this many prompts and seeds find with 80% power.")
    parts += [f"Ranking (log-odds of beating sft): {order}."] if order else []
    return "\n\n".join(["## Head to head", *parts]) if parts else ""


def reward_models(results: Mapping[str, Any]) -> str:
    """How well the reward models order held-out pairs."""
    fields = ("accuracy", "accuracy_gold", "ece", "brier", "tie_rate")
    models = results.get("reward_models") or {}
    rows = [[escape(name), *(interval(model.get(field)) for field in fields)] for name, model in models.items()]
    header = ("reward model", "accuracy", "accuracy on gold", "ECE", "Brier", "tie rate")
    return f"## Reward models\n\n{_table(header, rows)}" if rows else ""


def costs(results: Mapping[str, Any]) -> str:
    """What each arm cost: its own, with all that it stands on, one answer."""
    rows = []
    side_by_side = False
    for label, arm in (results.get("arms") or {}).items():
        cost = arm.get("cost") or {}
        side_by_side = side_by_side or bool(cost.get("side_by_side"))
        for part, name in (("own", "own"), ("with_upstream", "with upstream"), ("answer", "one answer")):
            if cost.get(part):
                shown = [form(cost[part].get(field)) for field, (_, form) in COST_COLUMNS.items()]
                rows.append([f"{escape(label)}, {name}", *shown])
    if not rows:
        return ""
    text = "Summed over resumes; stages that were reused count with what they took when they ran. With upstream: "
    text += "everything that the arm stands on, each shared stage charged in full to every arm that uses it."
    text += " Stages ran side by side: do not compare wall times." if side_by_side else ""
    return f"## Cost\n\n{_table(('arm', *(name for name, _ in COST_COLUMNS.values())), rows)}\n\n{text}"


def _figures(figures: Sequence[tuple[str, str]]) -> str:
    shown = []
    for name, link in figures:
        title = FIGURE_TITLES.get(name, Path(name).stem)
        shown.append(f"![{escape(title)}](<{link.replace('>', '%3E').replace('<', '%3C')}>)")
    return "## Figures\n\n" + "\n\n".join(shown) if shown else ""


def caveats(results: Mapping[str, Any]) -> str:
    """What a reader must know before quoting a number."""
    found: list[str] = []
    caveat = wording.seeds_caveat(results)
    found += dict.fromkeys([*([caveat] if caveat else []), *map(str, results.get("warnings") or ())])
    known = results.get("arms") or {}
    if all((arm.get("gold_reward") or {}).get("value") is None for arm in known.values()):
        found.append("No gold reward: the proxy says what was optimized, not what is good.")
    for label, arm in known.items():
        if arm.get("diverged"):
            found.append(f"{label} diverged: {arm['diverged']}. Its row shows the last good checkpoint.")
        unscored = (arm.get("win_rate") or {}).get("n_unscored") or 0
        if unscored:
            found.append(f"{label}: {unscored} responses have no score.")
    ok, _ = wording.certificate_line(results)
    if not ok:
        found.append("The arms were not matched: see the failed checks above before reading any difference.")
    return "## Caveats\n\n" + "\n".join(f"- {escape(line)}" for line in found) if found else ""


def provenance(results: Mapping[str, Any]) -> str:
    """Seeds, stages, tracking."""
    stages = results.get("stages") or ()
    reused = sum(bool(stage.get("cached")) for stage in stages)
    seeds = ", ".join(f"{name} {value}" for name, value in (results.get("seeds") or {}).items())
    lines = [f"- seeds: {escape(seeds)}", f"- stages: {len(stages)}, of which {reused} reused"]
    mlflow = results.get("mlflow") or {}
    if mlflow.get("tracking_uri"):
        run = mlflow.get("run_id") or "not sent yet"
        named = f"experiment {escape(mlflow.get('experiment'))}, run {escape(run)}"
        lines.append(f"- MLflow: {escape(mlflow['tracking_uri'])}, {named}")
    return "## Provenance\n\n" + "\n".join(lines)


# The sections in order; report.html places them by these names, and one that it has no place for at its end.
SECTIONS: dict[str, Callable[[Mapping[str, Any]], str]] = {
    "certificate": certificate,
    "arms": arms,
    "against": against,
    "judges": judges,
    "by_seed": by_seed,
    "duels": duels,
    "diversity": diversity,
    "annotators": annotators,
    "matched": curves.matched,
    "overoptimization": curves.overoptimization,
    "crossed": crossed.sections,
    "agreement": agreement_sections,
    "reward_models": reward_models,
    "costs": costs,
    "figures": lambda _: "",
    "caveats": caveats,
    "limits": limits.section,
    "decision": decision,
    "provenance": provenance,
}
