"""What the stages left about each arm, read into arrays that the measures take.

Every arm becomes the same thing: values of responses by prompt and run seed, with weights. A trained policy has plain
samples; best-of-n is its whole candidate pool, each candidate weighted by its probability of being picked.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from workbench.data.records_io import read_jsonl
from workbench.data.simulate import count_words
from workbench.match_facts import ONLINE
from workbench.metrics.best_of_n import best_of_n_value
from workbench.metrics.estimates import Array, cluster_mean, interval_of_mean, mean_by_cluster, means_within
from workbench.metrics.frontier import best_of_n_judged
from workbench.metrics.win_rate import Judged
from workbench.results_base import Compared
from workbench.types import Estimate


@dataclass(frozen=True, kw_only=True)
class Responses:
    """Responses of one policy on one prompt set in one run seed, N rows in the artifact's order.

    Args:
        prompts: (N,) prompt ids.
        columns: name -> (N,) values: "gold", "proxy/NAME", "implicit/LABEL", "seq_kl", "response_tokens",
            "response_characters", "response_words", "seq_logprob" (under the policy that drew it), "finished".
        ids: (N,) generation ids.
    """

    prompts: Sequence[str]
    columns: Mapping[str, Array]
    ids: Sequence[str] = ()

    @cached_property
    def rows(self) -> dict[str, Array]:
        """prompt -> its rows, prompts in order of appearance."""
        found: dict[str, list[int]] = {}
        for row, prompt in enumerate(self.prompts):
            found.setdefault(prompt, []).append(row)
        return {prompt: np.array(rows) for prompt, rows in found.items()}

    def by_prompt(self, column: str) -> dict[str, Array]:
        """prompt -> (k,) values of its responses."""
        values = self.columns[column]
        return {prompt: values[rows] for prompt, rows in self.rows.items()}

    def by_id(self, column: str) -> dict[str, float]:
        """generation id -> its value."""
        return dict(zip(self.ids, self.columns[column].tolist(), strict=True))


@dataclass(frozen=True, kw_only=True)
class ArmRun:
    """One arm in one run seed.

    Args:
        label, kind, seed: Which one.
        samples: Plain samples: of the policy, or winners of disjoint blocks for best-of-n.
        kl: The samples that KL is measured on (temperature 1, top-p 1); None for best-of-n.
        pool, selector, n: Best-of-n's candidates, the column that picks, and how many it draws.
        kl_pool: Candidates at temperature 1 and top-p 1, for its frontier; `pool` where that is how answers are drawn.
        own: Column of what the arm itself optimized; None for the SFT.
        implicit_beta: DPO's beta, for its own objective.
        diverged: Why training stopped early, or None.
    """

    label: str
    kind: str
    seed: int
    samples: Responses
    kl: Responses | None
    pool: Responses | None = None
    kl_pool: Responses | None = None
    selector: str | None = None
    n: int | None = None
    own: str | None = None
    implicit_beta: float | None = None
    diverged: str | None = None
    selected: Mapping[str, Any] | None = None

    def judged(self, column: str, share: tuple[int, int] = (0, 1)) -> Judged:
        """Values by one scorer, weighted, for win rates.

        Args:
            column: The judge's.
            share: (i, k): of a candidate pool, only every k-th candidate from the i-th. Two best-of-n arms draw from
                one pool; whole against whole would let a candidate meet itself and favor the larger n.
        """
        if self.pool is None or self.selector is None or self.n is None:
            return Judged(scores=self.samples.by_prompt(column))
        part = slice(share[0], None, share[1])
        selector, values = self.pool.by_prompt(self.selector), self.pool.by_prompt(column)
        return best_of_n_judged(
            {prompt: scores[part] for prompt, scores in selector.items()},
            {prompt: scores[part] for prompt, scores in values.items()},
            self.n,
        )

    def values(self, column: str) -> tuple[Array, list[str]]:
        """Values and their prompts: one a sample, or for best-of-n one a prompt, its exact expectation."""
        if column == "own" and self.implicit_beta is not None:
            assert self.kl is not None
            return self.implicit_beta * self.kl.columns["seq_kl"], list(self.kl.prompts)
        if column == "own":
            assert self.own is not None
            column = self.own
        if self.pool is None or self.selector is None or self.n is None:
            source = self.kl if column == "seq_kl" and self.kl is not None else self.samples
            return source.columns[column], list(source.prompts)
        selector, values = self.pool.by_prompt(self.selector), self.pool.by_prompt(column)
        return np.array([best_of_n_value(selector[p], values[p], self.n) for p in selector]), list(selector)


def mean_over(runs: Sequence[ArmRun], column: str, *, proportion: bool = False) -> Estimate:
    """Mean of a column over prompts and run seeds, clustered by prompt and crossed with seeds."""
    values: list[Array] = []
    prompts: list[str] = []
    seeds: list[int] = []
    for run in runs:
        found, names = run.values(column)
        values.append(found)
        prompts += names
        seeds += [run.seed] * len(names)
    return mean_by_cluster(
        np.concatenate(values), prompts, None, seeds if len(runs) > 1 else None, proportion=proportion
    )


def gain_over(runs: Sequence[ArmRun], baseline: Sequence[ArmRun], column: str) -> Compared:
    """Mean of a column less the baseline's, paired by prompt (and run seed): what most intervals of an arm hide."""
    gains: list[float] = []
    prompts: list[str] = []
    seeds: list[int] = []
    for one, other in zip(runs, baseline, strict=True):
        a, b = (dict(zip(*reversed(means_within(*run.values(column))), strict=True)) for run in (one, other))
        for prompt in a:
            gains.append(
                float(a[prompt] - b.get(prompt, math.nan))
            )  # the certificate names prompts that one side lacks
            prompts.append(str(prompt))
            seeds.append(one.seed)
    mean = cluster_mean(gains, prompts, None, seeds if len(runs) > 1 else None)
    return Compared.of(interval_of_mean(mean), minimum_detectable_effect=mean.detectable_effect())


class Artifacts:
    """Inputs of `measure` and `samples`: `prompts`, `pairs`, `raw_pairs`, `LABEL/RUN/ROLE`, `reward/NAME/RUN`."""

    def __init__(self, inputs: Mapping[str, Path]) -> None:
        self.inputs = inputs
        self._read: dict[Path, Responses] = {}

    def has(self, label: str, run: int, role: str) -> bool:
        """Whether this arm has this artifact."""
        return f"{label}/{run}/{role}" in self.inputs

    def path(self, label: str, run: int, role: str) -> Path:
        """Folder of an arm's artifact."""
        return self.inputs[f"{label}/{run}/{role}"]

    def json(self, label: str, run: int, role: str, file: str) -> Any:
        """A JSON file of an arm's artifact."""
        return json.loads((self.path(label, run, role) / file).read_text(encoding="utf-8"))

    def responses(self, label: str, run: int, role: str, *scores: str) -> Responses:
        """Generations with the columns of their scores, from one or several artifacts."""
        bare = self._generations(self.path(label, run, role))
        columns = dict(bare.columns)
        for name in scores:
            found = self.json(label, run, name, "scores.json")
            if found.pop("generation_id") != bare.ids:
                raise ValueError(f"scores of {label} are not of these generations: the ids differ")
            columns |= {column: np.array(values, dtype=np.float64) for column, values in found.items()}
        # In an order of their own, so that no resampled figure, and no share of a pool, hangs on the order of rows.
        order = np.lexsort((columns.pop("sample_index"), np.array(bare.prompts)))
        prompts, ids = ([names[row] for row in order] for names in (bare.prompts, bare.ids))
        return Responses(prompts=prompts, columns={name: one[order] for name, one in columns.items()}, ids=ids)

    def _generations(self, folder: Path) -> Responses:
        """Generations alone, in the artifact's order; one pool serves several arms."""
        if folder in self._read:
            return self._read[folder]
        generations = list(read_jsonl(folder / "generations.jsonl"))
        columns: dict[str, Array] = {
            "sample_index": np.array([one["sample_index"] for one in generations]),
            "seq_kl": np.array([one["seq_logprob"] - one["ref_seq_logprob"] for one in generations]),
            "response_tokens": np.array([float(len(one["response_ids"])) for one in generations]),
            "response_characters": np.array([float(len(one["response"])) for one in generations]),
            "response_words": np.array([float(count_words(one["response"])) for one in generations]),
            "seq_logprob": np.array([float(one["seq_logprob"]) for one in generations]),
            "finished": np.array([float(one["finish_reason"] == "stop") for one in generations]),
        }
        prompts, ids = ([one[name] for one in generations] for name in ("prompt_id", "generation_id"))
        self._read[folder] = Responses(prompts=prompts, columns=columns, ids=ids)
        return self._read[folder]

    def arm(self, label: str, run: int, arm: Mapping[str, Any] | None, proxy: str) -> ArmRun:
        """One arm in one run seed; `arm` is its config block, None for the SFT."""
        samples = self.responses(label, run, "generations", "scores")
        if arm is None:
            straight = self.responses(label, run, "kl", "kl_scores") if self.has(label, run, "kl") else samples
            return ArmRun(label=label, kind="sft", seed=run, samples=samples, kl=straight)
        if arm["kind"] == "best_of_n":
            selector = self.column(arm["reward"], run)
            pool = self._pool(label, run, "")
            return ArmRun(
                label=label, kind="best_of_n", seed=run, samples=samples, kl=None, n=arm["n"], selector=selector,
                pool=pool, own=selector,
                kl_pool=self._pool(label, run, "kl_") if self.has(label, run, "kl_pool") else pool,
            )  # fmt: skip
        index = self.json(label, run, "policy", "index.json")
        diverged = index["diverged"]
        selected = self.json(label, run, "selected", "selected.json")
        step = next(one["step"] for one in index["checkpoints"] if one["name"] == selected["checkpoint"])
        return ArmRun(
            label=label,
            kind=arm["kind"],
            seed=run,
            samples=samples,
            kl=self.responses(label, run, "kl") if self.has(label, run, "kl") else samples,
            own=self.column(arm["reward"], run) if arm["kind"] in ONLINE else None,
            implicit_beta=arm["beta"] if arm["kind"] == "dpo" else None,
            diverged=f"{diverged['reason']} (step {diverged['step']})" if diverged else None,
            selected=selected | {"step": step},
        )

    def _pool(self, label: str, run: int, prefix: str) -> Responses:
        """A best-of-n arm's candidates with the columns of the shared proxy, of gold and of its own selector."""
        scores = [f"{prefix}{name}" for name in ("pool_scores", "pool_gold", "selector_scores")]
        return self.responses(label, run, f"{prefix}pool", *(one for one in scores if self.has(label, run, one)))

    def column(self, reward: str, run: int) -> str:
        """Column of a reward model's scores, or of a DPO arm's implicit reward."""
        return f"proxy/{reward}" if self.is_reward(reward, run) else f"implicit/{reward}"

    def is_reward(self, name: str, run: int) -> bool:
        """Whether a name is an explicit reward model's."""
        return f"reward/{name}/{run}" in self.inputs
