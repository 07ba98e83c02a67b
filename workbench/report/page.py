"""report.html: a comparison as one page that needs nothing but itself. The words and tables are report.md's."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from workbench.report import charts_agreement, charts_reward, summary, wording
from workbench.report.charts import looks
from workbench.report.charts_parts import switch_rules
from workbench.report.page_samples import samples_section
from workbench.report.prose import prose
from workbench.report.samples import browser, first_seed
from workbench.report.shell import asset, page, safe, section, write_page
from workbench.report.wording import interval
from workbench.runs import SAMPLES_FILE, read_config

PAGE_FILE = "report.html"
MOST_NAMED = 4  # arms in the headline
FOLD = 20  # rows; longer tables are folded up
_PLACED = {
    "certificate", "arms", "against", "judges", "by_seed", "duels", "diversity", "annotators", "matched",
    "overoptimization", "crossed", "agreement", "reward_models", "costs", "figures", "caveats", "limits", "decision",
    "provenance",
}  # fmt: skip
_HEADLINES = {
    "winner": "{0} wins",
    "equivalent": "{0}: equivalent",
    "undecided": "Undecided between {0}",
    "none": "Nothing may be decided",
}


def write_report_page(results: Mapping[str, Any], folder: Path, path: Path | None = None) -> Path:
    """Writes the page of a comparison.

    Args:
        results: results.json, schema 1.
        folder: Where the samples and the config lie, if they do.
        path: Where the page goes; default: into the folder.
    """
    found = folder / SAMPLES_FILE
    rows = first_seed(found) if found.is_file() else []
    return write_page(report_page(results, rows, read_config(folder)), path or folder / PAGE_FILE)


def report_page(
    results: Mapping[str, Any], rows: Sequence[dict[str, Any]] = (), config: Mapping[str, Any] | None = None
) -> str:
    """The page's text.

    Args:
        results: results.json, schema 1.
        rows: Samples of the first run seed (`samples.first_seed`).
        config: The comparison's config, secrets redacted.
    """
    shown = browser(rows)
    told = {name: make(results) for name, make in summary.SECTIONS.items()}
    parts = [
        ("decision", "Decision", _decision(results, told)),
        ("arms", "Arms", _of(told["arms"]) + charts_agreement.win_rates(results)
         + "".join(_of(told[name], 3) for name in ("against", "duels", "by_seed"))),
        ("frontier", "Reward against KL", charts_reward.frontier(results) + _of(told["matched"], 3)),
        ("overoptimization", "Over-optimization", charts_reward.overoptimization(results)
         + _of(told["overoptimization"])),
        ("crossed", "Reward and optimizer", charts_reward.tilt(results) + _of(told["crossed"], 3)),
        ("agreement", "Implicit against explicit reward", _agreement(results, told["agreement"])),
        ("samples", "Samples", samples_section(shown)),
        ("diversity", "Diversity and annotators", _of(told["diversity"], 3) + _of(told["annotators"], 3)),
        ("rewards", "Reward models and judges", _of(told["reward_models"], 3) + _of(told["judges"], 3)),
        *((name, _heading(told[name]), _of(told[name])) for name in told if told[name] and name not in _PLACED),
        ("cost", "Cost", _of(told["costs"])),
        ("certificate", "Match certificate", _certificate(results)),
        ("limits", "What was not established", _of(told["limits"])),
        ("provenance", "Provenance", _of(told["provenance"]) + _config(config) + _files(rows)),
    ]  # fmt: skip
    parts = [part for part in parts if part[2]]
    seeds = wording.run_seeds(results)
    return page(
        title=str(results.get("comparison", "comparison")),
        kicker=f"Comparison · {len(seeds)} run seed{'s' if len(seeds) != 1 else ''} · 95% intervals throughout",
        nav=[(name, _short_heading(heading)) for name, heading, _ in parts],
        body="".join(section(*part) for part in parts),
        style=asset("report.css") + switch_rules(looks(results)),
        script=asset("report.js"),
        data={"samples-data": shown} if shown else None,
    )


def _short_heading(heading: str) -> str:
    return {
        "Reward against KL": "Frontier",
        "Reward and optimizer": "Optimizers",
        "Implicit against explicit reward": "Agreement",
        "Diversity and annotators": "Diversity",
        "Reward models and judges": "Judges",
        "Match certificate": "Certificate",
        "What was not established": "Not established",
    }.get(heading, heading)


def _of(markdown: str, level: int | None = None) -> str:
    """Sections of report.md as HTML, without their heading, or with all headings `level` deep at least."""
    if not markdown:
        return ""
    if level is None:
        head, _, rest = markdown.partition("\n\n")
        return prose(rest, head.lstrip("# "), FOLD)
    lines = (("#" * (level - 2) + line if line.startswith("##") else line) for line in markdown.split("\n"))
    return prose("\n".join(lines), fold=FOLD)


def _heading(markdown: str) -> str:
    return markdown.partition("\n")[0].lstrip("# ")


# ------------------------------------------------------------------------------------------ sections


def _decision(results: Mapping[str, Any], told: Mapping[str, str]) -> str:
    ok, line = wording.certificate_line(results)
    found = results.get("decision") or {}
    head = _HEADLINES.get(str(found.get("verdict")), "").format(_listed(found.get("arms") or ()))
    scope = {"checkpoints": "checkpoints, not methods", "methods": "methods"}.get(str(found.get("scope")), "")
    tags = f'<span class="tag {"good" if ok else "bad"}">{safe(line)}</span>'
    tags += f' <span class="tag">compares {safe(scope)}</span>' if scope and head else ""
    parts = [f'<p class="headline">{safe(head)}</p>' if head else "", f"<p>{tags}</p>"]
    parts.append(f'<p class="lead">{safe(wording.verdict(results))}</p>')
    parts.append(_cards(results))
    if found:
        parts.append(f"<h3>In full</h3><p>{safe(found['sentence'])}</p>")
        _, _, rest = told["decision"].partition("\n\n")
        evidence = rest.partition("\n\n")[2]
        if evidence:
            parts.append(
                f"<details><summary>The evidence</summary>{prose(evidence, 'Evidence of the decision')}</details>"
            )
    warnings = _of(told["caveats"])
    return "".join(parts) + (f"<h3>Before you quote a number</h3>{warnings}" if warnings else "")


def _listed(names: Sequence[str]) -> str:
    if len(names) > MOST_NAMED:
        return f"{len(names)} candidates"
    return " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)


def _cards(results: Mapping[str, Any]) -> str:
    """The arms' headline figures, best first: what most readers came for."""
    arms = {label: arm for label, arm in (results.get("arms") or {}).items() if label != "sft"}
    known = [(label, arm) for label, arm in arms.items() if (arm.get("win_rate") or {}).get("value") is not None]
    known.sort(key=lambda one: -one[1]["win_rate"]["value"])
    cards = (
        f"<div><dt>{safe(label)}</dt><dd>{safe(wording.number(arm['win_rate']['value']))} "
        f"<small>{safe(_ends(arm['win_rate']))}</small>"
        f"<small>KL {safe(wording.kl_text(arm.get('seq_kl')))}</small></dd></div>"
        for label, arm in known
    )
    against = wording.baseline_and_judge(results)
    return f'<p class="note">Win rate {safe(against)}</p><dl class="cards">{"".join(cards)}</dl>' if known else ""


def _ends(estimate: Mapping[str, Any]) -> str:
    return interval(estimate).removeprefix(wording.number(estimate["value"])).strip()


def _agreement(results: Mapping[str, Any], told: str) -> str:
    if not told:
        return ""
    main, *rest = told.partition("\n\n")[2].split("\n\n### ")
    figures = charts_agreement.agreement(results) + prose(main, "Agreement") + charts_agreement.reliability(results)
    blocks = []
    for one in rest:
        head, _, body = one.partition("\n\n")
        if head == "Disagreements that matter":  # the browser shows them, with a search
            blocks.append(f"<details><summary>{safe(head)}</summary>{prose(body, head)}</details>")
            continue
        drawn = charts_agreement.trajectory(results) if head == "Over training" else ""
        blocks.append(f"<h3>{safe(head)}</h3>{drawn}{prose(body, head, FOLD)}")
    return figures + "".join(blocks)


def _certificate(results: Mapping[str, Any]) -> str:
    ok, line = wording.certificate_line(results)
    told = summary.certificate(results, colored=False).partition("\n\n")[2].partition("\n\n")[2]
    return f'<p class="{"good" if ok else "bad"}">{safe(line)}</p>{prose(told, "Match certificate")}'


def _config(config: Mapping[str, Any] | None) -> str:
    if config is None:
        return ""
    text = "\n".join(f"{name}: {json.dumps(value, ensure_ascii=False)}" for name, value in flat(config))
    lines = "\n".join(safe(line) for line in text.split("\n"))
    return f'<details><summary>The config</summary><pre class="text">{lines}</pre></details>'


def flat(value: Any, path: str = "") -> list[tuple[str, Any]]:
    """A config as (dotted path, value), lists whole."""
    if isinstance(value, Mapping) and value:
        return [pair for name, one in value.items() for pair in flat(one, f"{path}.{name}" if path else str(name))]
    return [(path, value)]


def _files(rows: Sequence[Mapping[str, Any]]) -> str:
    told = "Beside this page: results.json (every number and how it was made), report.md, judgments.jsonl, "
    told += "disagreements.json" + (", samples.jsonl.gz (every sample of every run seed)." if rows else ".")
    return f'<p class="note">{told}</p>'
