"""What the measure stage says of the diversity of every arm's samples."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from workbench.config_base import BASELINE
from workbench.data.records_io import read_jsonl
from workbench.evidence import ArmRun
from workbench.measure_scope import Scope, plain
from workbench.metrics.diversity import distinct, entropy_per_token, gram_totals, self_bleu, similarity
from workbench.metrics.estimates import ClusterMean, cluster_mean, interval_of_mean
from workbench.results_base import Compared, E
from workbench.results_diversity import DIVERSITY, Diversity

ByPrompt = dict[str, float]
WHY_NULL = {
    "self_bleu": "needs two samples a prompt",
    "similarity_within": "needs two samples a prompt",
    "similarity_between": "needs two prompts",
    "entropy_per_token": "best-of-n's own probabilities are not known",
}


@dataclass(frozen=True)
class _Drawn:
    """One arm's samples in one run seed: token ids without the stop token, by prompt."""

    texts: dict[str, list[list[int]]]
    entropy: ByPrompt


class DiversityMeasure:
    """`arms.LABEL.diversity` of results.json. All arms together: n-grams are compared at equal size."""

    def __init__(self, scope: Scope) -> None:
        self.scope = scope

    def arms(self) -> dict[str, dict[str, Any]]:
        """The field of every arm, as plain JSON."""
        drawn = {label: [self._drawn(one) for one in runs] for label, runs in self.scope.arms.items()}
        sizes = {n: _smallest(drawn, n) for n in (1, 2)}
        values = {label: [_values(one, sizes) for one in runs] for label, runs in drawn.items()}
        compared = float(np.mean(list(sizes[1].values()))) if sizes[1] else 0.0
        return {
            label: {
                "diversity": plain(
                    Diversity.of(
                        {name: self._estimate(name, [one[name] for one in runs]) for name in DIVERSITY},
                        {} if label == BASELINE else self._against(runs, values[BASELINE]),
                        compared,
                    )
                )
            }
            for label, runs in values.items()
        }

    def _drawn(self, one: ArmRun) -> _Drawn:
        artifacts = self.scope.artifacts
        texts: dict[str, list[list[int]]] = {}
        for row in read_jsonl(artifacts.path(one.label, one.seed, "generations") / "generations.jsonl"):
            ids = list(row["response_ids"])
            texts.setdefault(row["prompt_id"], []).append(ids[:-1] if row["finish_reason"] == "stop" else ids)
        entropy: ByPrompt = {}
        if one.kl is not None:  # drawn at temperature 1 by the policy itself
            entropy = entropy_per_token(
                {prompt: found.tolist() for prompt, found in one.kl.by_prompt("seq_logprob").items()},
                one.kl.by_prompt("response_tokens"),
            )
        return _Drawn(dict(sorted(texts.items())), entropy)

    def _mean(self, runs: Sequence[Mapping[str, float]]) -> ClusterMean:
        cells = [(prompt, seed, value) for seed, found in enumerate(runs) for prompt, value in found.items()]
        values, prompts, seeds = [c[2] for c in cells], [c[0] for c in cells], [c[1] for c in cells]
        return cluster_mean(values, prompts, None, seeds if len(runs) > 1 else None)

    def _estimate(self, name: str, runs: Sequence[ByPrompt]) -> E:
        found = E.of(interval_of_mean(self._mean(runs)))
        if found.value is None and name in WHY_NULL:
            return found.model_copy(update={"method": WHY_NULL[name]})
        return found

    def _against(
        self, runs: Sequence[Mapping[str, ByPrompt]], baseline: Sequence[Mapping[str, ByPrompt]]
    ) -> dict[str, Compared]:
        found = {}
        for name in DIVERSITY:
            gaps = [
                {prompt: value - theirs[name][prompt] for prompt, value in ours[name].items() if prompt in theirs[name]}
                for ours, theirs in zip(runs, baseline, strict=True)
            ]
            mean = self._mean(gaps)
            if mean.value is not None:
                found[name] = Compared.of(interval_of_mean(mean), minimum_detectable_effect=mean.detectable_effect())
        return found


def _smallest(drawn: Mapping[str, Sequence[_Drawn]], n: int) -> dict[str, int]:
    """prompt -> the fewest n-grams that any arm has there in any run seed."""
    found: dict[str, int] = {}
    for totals in (gram_totals(one.texts, n) for runs in drawn.values() for one in runs):
        for prompt, total in totals.items():
            found[prompt] = min(total, found.get(prompt, total))
    return found


def _values(one: _Drawn, sizes: Mapping[int, Mapping[str, int]]) -> dict[str, ByPrompt]:
    within, between = similarity(one.texts)
    return {
        "distinct_1": distinct(one.texts, 1, sizes[1]),
        "distinct_2": distinct(one.texts, 2, sizes[2]),
        "self_bleu": self_bleu(one.texts),
        "similarity_within": within,
        "similarity_between": between,
        "entropy_per_token": one.entropy,
    }
