"""Who beat whom, by every judge: prompt-level wins, from scores where the judge is a scorer and from judgments else."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from scipy import stats

from workbench.config_base import BASELINE
from workbench.evidence import ArmRun, Artifacts
from workbench.judging.asked import total_asked
from workbench.judging.nulls import FIRST, NULL_JUDGES, null_judgments
from workbench.judging.pairs import Pair, pairs_of_artifacts
from workbench.judging.records import JUDGMENTS_FILE, NULLS_FILE, judgment, read_judgments
from workbench.judging.summary import pair_preferences, summarize
from workbench.metrics.estimates import Array, mean_by_cluster, means_within
from workbench.metrics.win_rate import Judged, Wins, prompt_wins
from workbench.results import JudgeKind, JudgeQuality
from workbench.results_base import E
from workbench.types import Judgment

# Shares of unscored verdicts that differ this much between arms, beyond chance, could make a winner of their own.
UNEVEN_SHARE = 0.02
UNEVEN_P = 0.01


class Verdicts:
    """Wins of a comparison's arms.

    Args:
        artifacts: What the stages left.
        arms: label -> one ArmRun a run seed, the SFT among them.
        judges: name -> kind, of the judges that are no scorers.
        proxy: Name of the reward model behind the judge `proxy`.
    """

    def __init__(
        self,
        artifacts: Artifacts,
        arms: Mapping[str, Sequence[ArmRun]],
        judges: Mapping[str, JudgeKind],
        proxy: str,
    ) -> None:
        self.artifacts, self.arms, self.judges, self.proxy = artifacts, arms, judges, proxy
        self._pooled = {label for label, runs in arms.items() if runs[0].kind == "best_of_n"}
        # Rates, duels, lengths, the file of verdicts and the null judges all ask for the same files.
        self._read: dict[Path, list[Judgment]] = {}
        self._paired: dict[tuple[str, int], list[Pair]] = {}

    def over_baseline(self, judge: str, label: str, runs: Sequence[ArmRun]) -> Wins:
        """Wins of an arm over the SFT in the given runs."""
        if judge in self.judges:
            return self._judged_wins(judge, BASELINE, label, runs)
        seeds = {one.seed for one in runs}
        against = [one for one in self.arms[BASELINE] if one.seed in seeds]
        column = self.column(judge)
        return prompt_wins([one.judged(column) for one in runs], [one.judged(column) for one in against])

    def longer_by(self, judge: str, label: str, runs: Sequence[ArmRun], wins: Wins) -> Array:
        """Characters that the arm writes more than the SFT, mean over what was compared; a row of `wins` each."""
        gaps: dict[tuple[str, int], float] = {}
        for place, one in enumerate(runs):
            if judge in self.judges:
                pairs = [
                    pair
                    for pair in pair_preferences(self.judgments(judge, BASELINE, label, one.seed))
                    if not math.isnan(pair.preference)
                ]
                lengths = [float((pair.second_length or 0) - (pair.first_length or 0)) for pair in pairs]
                means, prompts = means_within(lengths, [pair.prompt_id for pair in pairs])
                seed = one.seed
            else:
                baseline = next(run for run in self.arms[BASELINE] if run.seed == one.seed)
                ours, theirs = (
                    dict(zip(*reversed(means_within(*run.values("response_characters"))), strict=True))
                    for run in (one, baseline)
                )
                prompts = [prompt for prompt in ours if prompt in theirs]
                means = np.array([ours[prompt] - theirs[prompt] for prompt in prompts])
                seed = place  # prompt_wins numbers the runs
            gaps |= {(str(prompt), seed): float(gap) for prompt, gap in zip(prompts, means, strict=True)}
        cells = zip(wins.prompts, wins.seeds, strict=True)
        return np.array([gaps.get(cell, math.nan) for cell in cells], dtype=np.float64)

    def duels(self, judge: str) -> dict[tuple[str, str], Wins]:
        """Wins of the first over the second, for every two arms that this judge compared."""
        labels = [label for label in self.arms if label != BASELINE]
        found = {}
        for a, b in itertools.combinations(labels, 2):
            if judge not in self.judges:
                found[a, b] = self._scored_wins(judge, a, b)
            elif self._has(judge, b, a):
                found[a, b] = self._judged_wins(judge, b, a, self.arms[a])
            elif self._has(judge, a, b):
                wins = self._judged_wins(judge, a, b, self.arms[b])
                found[a, b] = replace(wins, wins=1 - wins.wins)
        return found

    def everyone(self, judge: str) -> dict[tuple[str, str], Wins]:
        """`duels`, and each arm over the SFT: what a ranking stands on."""
        against = {
            (label, BASELINE): (
                self.over_baseline(judge, label, runs)
                if judge in self.judges
                else self._scored_wins(judge, label, BASELINE)
            )
            for label, runs in self.arms.items()
            if label != BASELINE
        }
        return against | self.duels(judge)

    def column(self, judge: str) -> str:
        """The scores' column that a scoring judge reads."""
        return "gold" if judge == "gold" else f"proxy/{self.proxy}"

    def _scored_wins(self, judge: str, a: str, b: str) -> Wins:
        """Wins of a over b by a scorer. Two best-of-n arms meet on disjoint halves of the pool that they draw from,
        each arm on each half in turn, so that neither name nor order says who gets which."""
        if not {a, b} <= self._pooled:
            return prompt_wins(self._scored(judge, a), self._scored(judge, b))
        one, other = (
            prompt_wins(self._scored(judge, a, (half, 2)), self._scored(judge, b, (1 - half, 2))) for half in (0, 1)
        )
        return replace(one, wins=(one.wins + other.wins) / 2, n_unscored=one.n_unscored + other.n_unscored)

    def _scored(self, judge: str, label: str, share: tuple[int, int] = (0, 1)) -> list[Judged]:
        return [one.judged(self.column(judge), share) for one in self.arms[label]]

    def _has(self, judge: str, first: str, second: str) -> bool:
        return self.artifacts.has(second, self.arms[second][0].seed, role(judge, first))

    def _judged_wins(self, judge: str, first: str, second: str, runs: Sequence[ArmRun]) -> Wins:
        return wins_of({one.seed: self.judgments(judge, first, second, one.seed) for one in runs})

    def judgments(self, judge: str, first: str, second: str, run: int) -> list[Judgment]:
        """A judge's verdicts on two arms in one run seed."""
        return self._judgments_in(self.artifacts.path(second, run, role(judge, first)))

    def _judgments_in(self, folder: Path) -> list[Judgment]:
        if folder not in self._read:
            self._read[folder] = read_judgments(folder / JUDGMENTS_FILE)
        return self._read[folder]

    def nulls(self, label: str, runs: Sequence[ArmRun]) -> dict[str, Wins]:
        """Wins over the SFT by each judge that knows nothing: sample i against sample i, in both orders."""
        found: dict[str, dict[int, list[Judgment]]] = {name: {} for name in NULL_JUDGES}
        for one in runs:
            for verdict in null_judgments(self._pairs(label, one)):
                found[verdict.judge].setdefault(one.seed, []).append(verdict)
        return {name: wins_of(by_seed) for name, by_seed in found.items()}

    def told(self, judge: str) -> Iterator[Judgment]:
        """Every verdict of a judge on an arm and the SFT, with their names: what leaves the comparison as a file.

        A scorer's verdicts are on sample i against sample i; its win rate is over all pairs of samples.
        """
        for label, runs in self.arms.items():
            if label == BASELINE:
                continue
            for one in runs:
                if judge in self.judges:
                    found = self.judgments(judge, BASELINE, label, one.seed)
                else:
                    found = self._scored_pairs(judge, label, one)
                for verdict in found:
                    yield replace(
                        verdict,
                        first=BASELINE,
                        second=label,
                        first_id=f"seed={one.seed}/{verdict.first_id}",
                        second_id=f"seed={one.seed}/{verdict.second_id}",
                    )

    def _scored_pairs(self, judge: str, label: str, one: ArmRun) -> list[Judgment]:
        baseline = next(run for run in self.arms[BASELINE] if run.seed == one.seed)
        ours, theirs = (run.samples.by_id(self.column(judge)) for run in (one, baseline))
        gaps = [(pair, ours[pair.second_id] - theirs[pair.first_id]) for pair in self._pairs(label, one)]
        return [judgment(pair, judge, None if math.isnan(gap) else (1 + float(np.sign(gap))) / 2) for pair, gap in gaps]

    def _pairs(self, label: str, one: ArmRun) -> list[Pair]:
        """Sample i of the SFT and sample i of an arm in one run seed."""
        if (label, one.seed) not in self._paired:
            baseline, arm = (self.artifacts.path(who, one.seed, "generations") for who in (BASELINE, label))
            pairs = pairs_of_artifacts(baseline, arm, self.artifacts.inputs["prompts"], len(one.samples.prompts))
            self._paired[label, one.seed] = pairs
        return self._paired[label, one.seed]

    # ------------------------------------------------------------------------------------------ how a judge did

    def quality(self, judge: str) -> JudgeQuality:
        """How a judge did over all arms and run seeds, and whether what is missing is spread evenly."""
        folders = {
            (second, run, first): self.artifacts.path(second, run, role(judge, first))
            for second, first in itertools.product(self.arms, self.arms)
            for run in (one.seed for one in self.arms[second])
            if self._has(judge, first, second)
        }
        verdicts = {place: self._judgments_in(folder) for place, folder in folders.items()}
        facts = [json.loads((folder / "facts.json").read_text(encoding="utf-8")) for folder in folders.values()]
        found = summarize(*verdicts.values())
        arms = [label for label in self.arms if label != BASELINE]
        missing = {
            label: [math.isnan(pair.preference) for (second, _, first), run in verdicts.items()
                    if second == label and first == BASELINE for pair in pair_preferences(run)]
            for label in arms
        }  # fmt: skip
        by_position = [
            one
            for (_, _, first), folder in folders.items()
            if first == BASELINE
            for one in read_judgments(folder / NULLS_FILE)
            if one.judge == FIRST
        ]
        took = total_asked(folders.values()) if self.judges[judge] == "llm" else None
        lineages = {fact["lineage"] for fact in facts if fact.get("lineage")}
        return JudgeQuality(
            kind=self.judges[judge],
            pairs=found.pairs,
            identical=found.identical,
            asked=found.asked,
            scored=found.scored,
            unscored=dict(found.unscored),
            ties=E.of(found.ties),
            flip_rate=E.of(found.flip_rate),
            first_shown_preferred=E.of(found.first_shown_preferred),
            models=sorted({model for fact in facts for model in fact.get("models", ())}),
            annotators=sorted({name for fact in facts for name in fact.get("annotators", ())}),
            requests=took.requests if took else None,
            prompt_tokens=took.prompt_tokens if took else None,
            completion_tokens=took.completion_tokens if took else None,
            usd=took.usd if took else None,
            null_model=next((fact["null_model"]["win_rate"] for fact in facts if fact.get("null_model")), None),
            null_first=E.of(
                mean_by_cluster(
                    [one.preference for one in by_position], [one.prompt_id for one in by_position], proportion=True
                )
            ),
            other_items=max((fact.get("other_items", 0) for fact in facts), default=0),
            lineage=" ".join(sorted(lineages)) or None,
            uneven=uneven_missingness({label: (sum(gone), len(gone)) for label, gone in missing.items()}),
        )


def role(judge: str, first: str) -> str:
    """Role of an arm's artifact that holds its judgments against another arm."""
    return f"judged/{judge}/{first}"


def wins_of(judgments: Mapping[int, Sequence[Judgment]]) -> Wins:
    """Prompt-level wins of the second system: the mean over a prompt's scored pairs, both orders of each together.

    Args:
        judgments: run seed -> verdicts of one judge on two systems.
    """
    prompts: list[str] = []
    seeds: list[int] = []
    wins: list[float] = []
    unscored = 0
    for seed, verdicts in judgments.items():
        by_prompt: dict[str, list[float]] = {}
        for pair in pair_preferences(verdicts):
            by_prompt.setdefault(pair.prompt_id, []).append(pair.preference)
        for prompt, values in by_prompt.items():
            scored = [value for value in values if not math.isnan(value)]
            unscored += len(values) - len(scored)
            prompts.append(prompt)
            seeds.append(seed)
            wins.append(sum(scored) / len(scored) if scored else math.nan)
    return Wins(prompts=tuple(prompts), seeds=tuple(seeds), wins=np.array(wins, dtype=np.float64), n_unscored=unscored)


def uneven_missingness(counts: Mapping[str, tuple[int, int]]) -> str | None:
    """Why verdicts that did not come could decide the comparison, or None.

    Args:
        counts: arm -> (unscored, judged) pairs against the SFT.

    Source: Pearson's chi-square test of homogeneity, at the 1% level, beside a difference of two points.
    """
    table = np.array([[gone, asked - gone] for gone, asked in counts.values() if asked])
    if len(table) < 2 or not table[:, 0].any() or not table[:, 1].any():
        return None
    shares = {label: gone / asked for label, (gone, asked) in counts.items() if asked}
    p = float(stats.chi2_contingency(table, correction=False).pvalue)
    if max(shares.values()) - min(shares.values()) <= UNEVEN_SHARE or p >= UNEVEN_P:
        return None
    told = ", ".join(f"{label} {share:.1%}" for label, share in shares.items())
    return f"unscored pairs differ by arm ({told}; chi-square p {p:.1g}): no win rate of this judge is shown"
