"""What stands for the truth where there is no gold: an independent judge, or the reward models an arm did not optimize.

Neither is known along a training run: the answers of the selected policy (and best-of-n's winners) on test prompts are,
beside the SFT's. So an arm's line is the SFT and its end: enough for a drop and a Goodhart flag, not for a fit.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from workbench.config_base import BASELINE
from workbench.evidence import ArmRun
from workbench.measure_lines import by_prompt, table_of
from workbench.measure_scope import Scope
from workbench.metrics.best_of_n import bound_kl
from workbench.metrics.estimates import Array
from workbench.metrics.fits import Form
from workbench.metrics.lines import Line, estimate, means, prompt_draws
from workbench.metrics.overoptimization import Start, overoptimization
from workbench.results_base import E
from workbench.results_curves import Overoptimization
from workbench.verdicts import Verdicts


class Truths:
    """Over-optimization without gold.

    Args:
        scope: The comparison.
    """

    def __init__(self, scope: Scope) -> None:
        self.scope = scope
        self.verdicts = Verdicts(scope.artifacts, scope.arms, scope.judge_kinds, scope.proxy)
        quality = {name: self.verdicts.quality(name) for name in scope.judges if name in scope.judge_kinds}
        # A judge that descends from the proxy, or whose verdicts are missing unevenly, is no truth.
        self.judge = next((name for name, q in quality.items() if q.lineage is None and q.uneven is None), None)

    def turn(self, label: str, forms: tuple[Form, ...], rng: np.random.Generator) -> list[Overoptimization]:
        """Rows of one arm; none where nothing stands for the truth."""
        runs = self.scope.arms[label]
        if self.judge is not None:
            return self._by_judge(label, runs, self.judge, forms, rng)
        own = self.scope.blocks[label].get("reward", self.scope.proxy)
        own = own if own in self.scope.rewards else self.scope.proxy
        others = [name for name in self.scope.rewards if name != own]
        return self._by_ensemble(label, runs, own, others, forms, rng) if others else []

    def _by_judge(
        self, label: str, runs: Sequence[ArmRun], judge: str, forms: tuple[Form, ...], rng: np.random.Generator
    ) -> list[Overoptimization]:
        wins = self.verdicts.over_baseline(judge, label, runs)
        seeds = [one.seed for one in runs]
        names = sorted(set(wins.prompts))
        # Wins number the run seeds or name them; either way in the order of the runs.
        order = {seed: seeds[place] for place, seed in enumerate(dict.fromkeys(wins.seeds))}
        rows = {(order[s], p): w - 0.5 for s, p, w in zip(wins.seeds, wins.prompts, wins.wins.tolist(), strict=True)}
        truth = table_of(rows, seeds, names)
        column = f"proxy/{self.scope.proxy}"
        start_proxy, proxy = (self._column(arm, column, names) for arm in (self._sft(runs), runs))
        line = self._line(label, runs, names, (start_proxy, proxy), (np.zeros_like(truth), truth))
        start = Start(gold=np.zeros_like(truth), proxy=start_proxy)
        found = overoptimization(line, start, forms, rng, truth="judge")
        return _told(found, f"win rate by {judge} less 0.5", self.scope.proxy)

    def _by_ensemble(
        self,
        label: str,
        runs: Sequence[ArmRun],
        own: str,
        others: Sequence[str],
        forms: tuple[Form, ...],
        rng: np.random.Generator,
    ) -> list[Overoptimization]:
        sft = self._sft(runs)
        names = list(sft[0].samples.rows)
        both = [self._scores(sft, sft, names, own, others), self._scores(runs, sft, names, own, others)]
        (proxy0, truth0, spread0, square0), (proxy1, truth1, spread1, _) = both
        line = self._line(label, runs, names, (proxy0, proxy1), (truth0, truth1))
        start = Start(gold=truth0, proxy=proxy0, gold_square=square0[1], proxy_square=square0[0])
        rows = overoptimization(line, start, forms, rng, truth="ensemble")
        draws = prompt_draws(len(names), rng)
        apart = means((spread1 - spread0)[:, :, None], draws)[:, :, 0]
        wider = estimate(apart, len(names), f"spread of {len(others) + 1} reward models")
        rows = [row.model_copy(update={"disagreement": wider}) for row in rows]
        return _told(rows, f"mean standardized score of {', '.join(others)}", own)

    def _scores(
        self, runs: Sequence[ArmRun], sft: Sequence[ArmRun], names: Sequence[str], own: str, others: Sequence[str]
    ) -> tuple[Array, Array, Array, tuple[Array, Array]]:
        """(S, P) own reward, mean of the others and spread of all, standardized on the SFT's samples; mean squares."""
        found: list[list[Array]] = [[], [], [], [], []]
        for one, reference in zip(runs, sft, strict=True):
            scaled = []
            for name in (own, *others):
                base = reference.samples.columns[f"proxy/{name}"]
                scaled.append((one.samples.columns[f"proxy/{name}"] - base.mean()) / max(float(base.std()), 1e-12))
            truth = np.mean(scaled[1:], axis=0)
            columns = (scaled[0], truth, np.std(scaled, axis=0, ddof=1), scaled[0] ** 2, truth**2)
            for table, values in zip(found, columns, strict=True):
                table.append(by_prompt(values, one.samples.prompts, names))
        proxy, mean, spread, proxy_square, mean_square = (np.stack(table) for table in found)
        return proxy, mean, spread, (proxy_square, mean_square)

    def _sft(self, runs: Sequence[ArmRun]) -> list[ArmRun]:
        return [one for run in runs for one in self.scope.arms[BASELINE] if one.seed == run.seed]

    def _column(self, runs: Sequence[ArmRun], column: str, names: Sequence[str]) -> Array:
        return np.stack([by_prompt(one.samples.columns[column], one.samples.prompts, names) for one in runs])

    def _line(
        self,
        label: str,
        runs: Sequence[ArmRun],
        names: Sequence[str],
        proxy: tuple[Array, Array],
        truth: tuple[Array, Array],
    ) -> Line:
        kl = np.zeros_like(proxy[0])
        if runs[0].n is not None:
            kl = kl + bound_kl(runs[0].n)
        else:
            straight = [one.kl or one.samples for one in runs]
            kl = np.stack([by_prompt(one.columns["seq_kl"], one.prompts, names) for one in straight])
        return Line(
            arm=label,
            kl_kind="bound" if runs[0].n is not None else "mc_k1",
            prompt_set="test",
            labels=("sft (test)", "selected (test)"),
            prompts=tuple(names),
            seeds=tuple(one.seed for one in runs),
            kl=np.stack([np.zeros_like(kl), kl], axis=2),
            proxy=np.stack(proxy, axis=2),
            gold=np.stack(truth, axis=2),
        )


def _told(rows: Sequence[Overoptimization], what: str, proxy: str) -> list[Overoptimization]:
    """The rows with a note in each estimate on what stands for the truth; their line is the SFT and one point."""
    found = []
    for row in rows:
        parts = {
            name: value.model_copy(update={"method": f"{value.method}; truth: {what}"})
            for name in ("alpha", "beta", "peak_kl", "drop_from_peak", "onset_kl", "gap")
            if isinstance(value := getattr(row, name), E)
        }
        found.append(row.model_copy(update=parts | {"proxy": proxy, "points": 1}))
    return found
