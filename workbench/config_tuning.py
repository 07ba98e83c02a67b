"""The config's `tuning` section: how much each arm may try, of what, and by which measure one setting is chosen."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationError, model_validator

from workbench.config_base import Count, Label, Problem, Section, Seed, refuse

REWARD_MODEL = "reward_model"  # what --arm and spaces call the shared reward model
FIXED = frozenset({"kind", "reward", "labels", "labels_rule", "pairs"})  # they would change what is compared
Scalar = bool | int | float | str
Reals = Annotated[list[float], Field(min_length=2, max_length=2)]
Wholes = Annotated[list[int], Field(min_length=2, max_length=2)]
Choices = Annotated[list[Scalar | None], Field(min_length=1)]


class Budget(Section):
    """What each arm may spend: the same for all. Pruned and failed trials count."""

    trials: Count | None = Field(default=None, description="Settings tried for each arm, the default among them.")
    seconds: Annotated[float, Field(gt=0)] | None = Field(
        default=None, description="Or: measured compute of each arm's own stages, in GPU seconds, CPU seconds without."
    )
    tokens: Count | None = Field(default=None, description="Or: tokens trained on and generated for each arm.")

    @model_validator(mode="after")
    def _one(self) -> Budget:
        given = [name for name in ("trials", "seconds", "tokens") if getattr(self, name) is not None]
        if len(given) != 1:
            message = f"got {' and '.join(given) or 'none of them'}, expected exactly one of trials, seconds, tokens"
            refuse([((), message)])
        return self

    @property
    def unit(self) -> Literal["trials", "seconds", "tokens"]:
        """Which of the three it is."""
        return "trials" if self.trials is not None else "seconds" if self.seconds is not None else "tokens"

    @property
    def amount(self) -> float:
        """How much of it."""
        return float(getattr(self, self.unit))


class Param(Section):
    """One setting's range: exactly one of float, int, categorical."""

    float: Reals | None = Field(default=None, description="[lowest, highest].")
    int: Wholes | None = Field(default=None, description="[lowest, highest], whole numbers.")
    categorical: Choices | None = Field(default=None, description="The values to choose from.")
    log: bool = Field(default=False, description="Drawn evenly in the logarithm; for float and int.")
    when: dict[str, Scalar | list[Scalar]] = Field(
        default_factory=dict, description="Only tried where settings above it have these values; else left as it is."
    )

    @model_validator(mode="after")
    def _check(self) -> Param:
        given = [name for name in ("float", "int", "categorical") if getattr(self, name) is not None]
        found: list[Problem] = []
        if len(given) != 1:
            found.append(((), f"got {' and '.join(given) or 'none'}, expected exactly one of float, int, categorical"))
        bounds = self.float or self.int
        if bounds is not None and bounds[0] >= bounds[1]:
            found.append(((given[0],), f"got {bounds}, expected the lowest first and a higher one after it"))
        if self.log and (bounds is None or bounds[0] <= 0):
            found.append((("log",), "needs a float or int range above 0"))
        refuse(found)
        return self

    def holds(self, value: Any) -> bool:
        """Whether a value lies in the range."""
        if self.categorical is not None:
            return any(value == one and isinstance(value, bool) == isinstance(one, bool) for one in self.categorical)
        if isinstance(value, bool) or not hasattr(value, "__float__"):
            return False
        low, high = self.float or self.int or (0, 0)
        return low <= value <= high and (self.int is None or value == round(value))

    def active(self, chosen: Mapping[str, Any]) -> bool:
        """Whether the settings chosen so far ask for this one."""
        for name, wanted in self.when.items():
            if chosen.get(name) not in (wanted if isinstance(wanted, list) else [wanted]):
                return False
        return True


class Objective(Section):
    """What a trial is worth: a mean over validation prompts that no final judge has a hand in (but for gold)."""

    metric: Literal["gold_reward", "proxy_reward", "win_rate"] = Field(
        default="proxy_reward",
        description="Mean reward, or win rate over sft. gold_reward, and win_rate by gold, are labeled an oracle.",
    )
    judge: Label | None = Field(default=None, description="Who decides win_rate: gold, proxy or one of `judges`.")
    max_kl: Annotated[float, Field(gt=0)] | None = Field(
        default=None, description="Settings whose KL passes this, in nats a response, cannot be chosen; null: no limit."
    )
    against_kl: bool = Field(
        default=False, description="Seeks all the best trade-offs with KL (multi-objective); no pruning then."
    )
    prompts: Count = Field(default=128, description="Validation prompts of a trial, in prompts.")
    samples_per_prompt: Count = Field(default=1, description="Responses sampled per prompt.")

    @model_validator(mode="after")
    def _check(self) -> Objective:
        if (self.metric == "win_rate") != (self.judge is not None):
            got = "got no judge" if self.judge is None else f"got '{self.judge}'"
            refuse([(("judge",), f"{got}, expected one with metric win_rate and only there")])
        return self

    @property
    def scorer(self) -> str:
        """Who scores: gold, proxy, or a judge's name."""
        return self.judge or self.metric.removesuffix("_reward")


class Pruner(Section):
    """When a trial is stopped early, judged by the policies that it keeps while it trains."""

    kind: Literal["none", "median", "hyperband", "wilcoxon"] = Field(
        default="none",
        description="median and hyperband compare means; wilcoxon the prompts' scores with the best trial's, once.",
    )
    at: list[Annotated[float, Field(gt=0, lt=1)]] = Field(
        default_factory=lambda: [0.25, 0.5, 0.75],
        min_length=1,
        description="Parts of the training after which the next checkpoint is scored; wilcoxon takes the middle one.",
    )
    prompts: Count = Field(default=64, description="Validation prompts of such a score, in prompts.")
    startup: Count = Field(default=4, description="Trials of an arm that are not pruned; the first ones.")
    p_threshold: float = Field(default=0.1, gt=0, lt=1, description="Of the Wilcoxon test.")

    @model_validator(mode="after")
    def _check(self) -> Pruner:
        if self.at != sorted(set(self.at)):
            refuse([(("at",), f"got {self.at}, expected rising numbers without repeats")])
        return self


class Repeats(Section):
    """The best few and the default are run again on fresh seeds before one is chosen."""

    top: Count = Field(default=3, description="Settings with the best scores that are repeated.")
    seeds: int = Field(default=2, ge=0, description="Fresh run seeds for each; 0: the best score decides, as it is.")


class Tuning(Section):
    """Sweeps that give every arm the same chance (`workbench tune`); `compare` reads `declared` alone."""

    budget: Budget = Field(default_factory=lambda: Budget(trials=20), description="What each arm may spend.")
    spaces: dict[Label, dict[str, Param]] = Field(
        default_factory=dict,
        description="Ranges by an arm's label, its kind, or reward_model; left out: the defaults of docs/tuning.md.",
    )
    objective: Objective = Field(default_factory=Objective, description="What a trial is worth.")
    sampler: Literal["tpe", "random"] = Field(default="tpe", description="How settings are drawn, the same for all.")
    startup: Count = Field(default=5, description="Trials that tpe draws at random first, the default among them.")
    pruner: Pruner = Field(default_factory=Pruner, description="When trials are stopped early.")
    repeats: Repeats = Field(default_factory=Repeats, description="Fresh seeds for the best few.")
    declared: list[Label] = Field(
        default_factory=list,
        description="Tuned rewards (reward_model, or an arm) whose trials do not count for the arms that stand on them:"
        " the certificate names the difference and does not hold it against them.",
    )
    seed: Seed = Field(
        default=1000, description="Run seed of all trials; repeats count on from it. None may be in seeds.runs."
    )
    storage: str | None = Field(
        default=None, min_length=1, description="Optuna storage URL; null: optuna.db in the run's home."
    )

    @model_validator(mode="after")
    def _check(self) -> Tuning:
        found: list[Problem] = []
        if self.objective.against_kl and self.pruner.kind != "none":
            message = "got a pruner, but trials of two objectives cannot be pruned; set objective.max_kl instead"
            found.append((("pruner", "kind"), message))
        if self.storage is not None and "@" in self.storage and ":" in self.storage.partition("@")[0].split("//")[-1]:
            found.append((("storage",), "holds a password, which would be copied into reports; use --storage"))
        for key, space in self.spaces.items():
            if not space:
                found.append((("spaces", key), "got no setting, expected at least one; leave it out for the defaults"))
            for place, (name, param) in enumerate(space.items()):
                earlier = list(space)[:place]
                found += [
                    (("spaces", key, name, "when", other), f"got '{other}', expected a setting above this one")
                    for other in param.when
                    if other not in earlier
                ]
        refuse(found)
        return self


def run_seeds(tuning: Tuning) -> list[int]:
    """Run seeds of the trials and of the repeats."""
    return list(range(tuning.seed, tuning.seed + 1 + tuning.repeats.seeds))


def value_at(block: Mapping[str, Any], dotted: str) -> Any:
    """The value at a dotted path of a dumped block.

    Raises:
        KeyError: There is no such field.
    """
    value: Any = block
    for step in dotted.split("."):
        if not isinstance(value, Mapping):
            raise KeyError(dotted)
        value = value[step]
    return value


def with_values(block: Section, params: Mapping[str, Any]) -> Section:
    """A block with other values at dotted paths; what follows from them follows.

    Raises:
        ValidationError: The block does not take them, or they do not fit each other.
    """
    raw = copy.deepcopy(block.model_dump(mode="json", exclude_unset=True))
    kind = getattr(block, "kind", None)
    if kind is not None:
        raw["kind"] = kind
    if kind == "best_of_n" and "n" in params:  # both follow from n
        raw.pop("report_n", None)
        raw.pop("pool", None)
    for name, value in params.items():
        *path, last = name.split(".")
        target = raw
        for step in path:
            target = target.setdefault(step, {})
        target[last] = value
    return type(block).model_validate(raw)


def tuning_problems(
    tuning: Tuning | None,
    blocks: Mapping[str, Section],
    judges: list[str],
    known: set[str],
    runs: list[int],
    *,
    has_gold: bool,
) -> Iterator[Problem]:
    """What does not fit the rest of the config.

    Args:
        blocks: Arms by label, and the proxy reward model as `reward_model`.
        judges: evaluation.judges.
        known: gold, proxy and the names under `judges`.
        runs: seeds.runs.
    """
    if tuning is None:
        return
    place: tuple[str | int, ...] = ("tuning", "objective")
    scorer = tuning.objective.scorer
    asked = "objective" in tuning.model_fields_set  # else `tune` asks, unless the reward model alone is tuned
    if asked and scorer not in known:
        yield (*place, "judge"), f"got '{scorer}', expected one of {', '.join(sorted(known))}"
    if tuning.pruner.kind != "none" and scorer not in ("gold", "proxy"):
        message = f"got {tuning.pruner.kind}, but checkpoints are scored by gold or proxy alone; use none"
        yield ("tuning", "pruner", "kind"), message
    if asked and scorer == "gold" and not has_gold:
        yield (*place, "metric"), "got gold but there is no gold; use proxy_reward"
    if asked and scorer in judges and scorer != "gold":
        others = f"{'gold_reward; ' if has_gold else ''}metric: win_rate with judge: one of `judges`"
        message = (
            f"got '{scorer}', which is a judge of the comparison; who selects must not be the final judge: put another "
            f"one into evaluation.judges in its place, or choose by another (tuning.objective: {others})"
        )
        yield (*place, "judge" if tuning.objective.judge else "metric"), message
    if shared := sorted({*run_seeds(tuning)} & {*runs}):
        yield ("tuning", "seed"), f"trials and repeats would use {shared}, which seeds.runs has; choose another"
    for key, space in tuning.spaces.items():
        named = {label: block for label, block in blocks.items() if key in (label, getattr(block, "kind", None))}
        if not named:
            kinds = {str(getattr(block, "kind", REWARD_MODEL)) for block in blocks.values()}
            expected = ", ".join(sorted({*blocks, *kinds}))
            yield ("tuning", "spaces", key), f"no such arm, expected one of {expected}"
        found = (problem for label, block in named.items() for problem in _space_problems(key, label, space, block))
        yield from dict.fromkeys(found)  # two arms of a kind refuse a value in the same words


def _space_problems(key: str, label: str, space: Mapping[str, Param], block: Section) -> Iterator[Problem]:
    """Settings that the block does not have, values that it would not take, a default that no trial could have."""
    plain = block.model_dump(mode="json")
    where = f"arms.{label}" if label != REWARD_MODEL else "the reward model"
    chosen: dict[str, Any] = {}
    if label == REWARD_MODEL and (path := plain.get("path")) is not None:
        yield ("tuning", "spaces", key), f"the reward model comes from {path} and is not trained: nothing to tune"
        return
    for name, param in space.items():
        place: tuple[str | int, ...] = ("tuning", "spaces", key, name)
        try:
            value = value_at(plain, name)
        except KeyError:
            yield place, f"{where} has no such field, expected one of {', '.join(n for n in plain if n not in FIXED)}"
            continue
        if name.partition(".")[0] in FIXED:
            yield place, f"cannot be tuned: it would change what is compared ({', '.join(sorted(FIXED))} are fixed)"
            continue
        if bad := list(_value_problems(place, name, param, block)):
            yield from bad
        elif param.active(chosen):
            chosen[name] = value
            if not param.holds(value):
                yield place, f"{where} has {value!r}, which lies outside; widen it: the config's own values are trial 0"


def _value_problems(place: tuple[str | int, ...], name: str, param: Param, block: Section) -> Iterator[Problem]:
    """Ends of a range, or choices, that the field does not take; what only other settings forbid is left to trials."""
    from workbench.config_messages import in_words  # which knows the whole config, this section in it

    kind = next(one for one in ("float", "int", "categorical") if getattr(param, one) is not None)
    for index, value in enumerate(getattr(param, kind)):
        try:
            with_values(block, {name: value})
        except ValidationError as error:
            for entry in error.errors(include_url=False):
                loc = entry["loc"]
                if entry["type"] == "default_factory_not_called" or loc[:1] != (name.partition(".")[0],):
                    continue
                hint = "; use int" if kind == "float" and entry["type"] in ("int_type", "int_from_float") else ""
                yield (*place, kind, index), in_words(entry) + hint
