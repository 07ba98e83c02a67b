"""Which settings of an arm are tried by default, and how a trial's settings are put into a config.

Every arm gets the same width around the config's own value: a factor of 4 each way for a learning rate, 5 for the
strength of the pull to the reference, so that none searches more than another. What is tried is what the field found
to matter most:

- dpo: `beta` and `learning_rate`. Rafailov et al. 2023 (https://arxiv.org/abs/2305.18290) sweep beta over 0.05 to 5;
  Meng et al. 2024 (https://arxiv.org/abs/2405.14734) tune both for every method and find the learning rate critical.
- ppo, rloo, grpo: `kl_coef` and `learning_rate`. Stiennon et al. 2020 (https://arxiv.org/abs/2009.01325) and Gao et
  al. 2022 (https://arxiv.org/abs/2210.10760) vary the KL penalty; Huang et al. 2024 (https://arxiv.org/abs/2403.17031)
  the learning rate.
- best_of_n: `n`, its one setting (Nakano et al. 2021, https://arxiv.org/abs/2112.09332; Gao et al. 2022).
- reward_model: `learning_rate`, `epochs`, `weight_decay`. Ouyang et al. 2022 (https://arxiv.org/abs/2203.02155) find
  reward models sensitive to the number of epochs.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError

from workbench.config import BestOfN, Comparison
from workbench.config_base import Section
from workbench.config_tuning import REWARD_MODEL, Param, Tuning, value_at, with_values
from workbench.errors import ConfigError

RATE_FACTOR = 4.0
PULL_FACTOR = 5.0
Space = Mapping[str, Param]
Params = Mapping[str, Any]


def labels_of(comparison: Comparison, asked: tuple[str, ...]) -> list[str]:
    """The arms that --arm names: labels, kinds, reward_model, or all (every arm of the config).

    Raises:
        ConfigError: There is no such arm, or it has nothing that could be tuned.
    """
    found: list[str] = []
    for name in asked:
        if name == "all":
            found += comparison.arms
        elif name in comparison.arms or name == REWARD_MODEL:
            found.append(name)
        elif any(arm.kind == name for arm in comparison.arms.values()):
            found += [label for label, arm in comparison.arms.items() if arm.kind == name]
        else:
            known = ", ".join(["all", *comparison.arms, REWARD_MODEL])
            raise ConfigError(f"got '{name}', expected one of {known}", where="--arm")
    proxy = comparison.reward_models[comparison.proxy]
    if REWARD_MODEL in found and proxy.path is not None:
        message = f"got '{REWARD_MODEL}', but it comes from {proxy.path} and is not trained: nothing of it can be tuned"
        raise ConfigError(message, where="--arm")
    return list(dict.fromkeys(found))


def block_of(comparison: Comparison, label: str) -> Section:
    """The config block that a label's trials change."""
    return comparison.reward_models[comparison.proxy] if label == REWARD_MODEL else comparison.arms[label]


def kind_of(comparison: Comparison, label: str) -> str:
    """Kind of an arm; the reward model's is `reward_model`."""
    return REWARD_MODEL if label == REWARD_MODEL else comparison.arms[label].kind


def tuning_of(comparison: Comparison, label: str) -> Tuning:
    """The tuning section as it holds for a label: a reward model has no KL to keep within or to trade against."""
    tuning = comparison.tuning or Tuning()
    if label != REWARD_MODEL:
        return tuning
    objective = tuning.objective.model_copy(update={"against_kl": False, "max_kl": None})
    return tuning.model_copy(update={"objective": objective})


def space_of(comparison: Comparison, label: str) -> dict[str, Param]:
    """The ranges of an arm: the config's by label, else by kind, else the defaults around its own values."""
    spaces = comparison.tuning.spaces if comparison.tuning is not None else {}
    kind = kind_of(comparison, label)
    return dict(spaces.get(label) or spaces.get(kind) or default_space(kind, block_of(comparison, label)))


def default_space(kind: str, block: Section) -> dict[str, Param]:
    """The default ranges of a kind of arm, around the values of a block."""
    plain = block.model_dump(mode="json")
    if kind == "best_of_n":
        n = int(plain["n"])
        return {"n": Param(int=[min(2, n), max(4 * n, 64)], log=True)}
    found = {"dpo": {"beta": PULL_FACTOR}, REWARD_MODEL: {}}.get(kind, {"kl_coef": PULL_FACTOR})
    space = {name: _around(float(plain[name]), factor) for name, factor in found.items()}
    space["learning_rate"] = _around(float(plain["learning_rate"]), RATE_FACTOR)
    if kind == REWARD_MODEL:
        epochs = plain["epochs"]
        space["epochs"] = Param(float=[1.0, max(6.0, 2 * epochs)])
        space["weight_decay"] = Param(float=[0.0, max(0.2, 2 * plain["weight_decay"])])
    return space


def _around(value: float, factor: float) -> Param:
    if value <= 0:
        return Param(float=[0.0, 0.5])  # a penalty that is off by default
    return Param(float=[value / factor, value * factor], log=True)


def default_params(comparison: Comparison, label: str) -> dict[str, Any]:
    """Trial 0: the config's own values of the settings that its space varies."""
    plain = block_of(comparison, label).model_dump(mode="json")
    chosen: dict[str, Any] = {}
    for name, param in space_of(comparison, label).items():
        if param.active(chosen):
            value = value_at(plain, name)
            chosen[name] = float(value) if param.float is not None else value
    return chosen


def largest_n(comparison: Comparison, label: str) -> int:
    """The largest n that a best-of-n arm's trials can have: one candidate pool serves them all."""
    arm = comparison.arms[label]
    assert isinstance(arm, BestOfN)
    param = space_of(comparison, label).get("n")
    tried = [] if param is None else [*(param.int or ()), *(int(str(one)) for one in param.categorical or ())]
    return int(max([arm.n, *tried]))


def with_params(comparison: Comparison, label: str, params: Params) -> Comparison:
    """The comparison with a trial's settings in the place of one arm's; what follows from them follows.

    Raises:
        ConfigError: The settings do not fit each other.
    """
    try:
        changed = with_values(block_of(comparison, label), params)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        place = ".".join([label, *map(str, first["loc"])])
        raise ConfigError(f"{first['msg']} with {dict(params)}", where=place) from error
    if label == REWARD_MODEL:
        models = dict(comparison.reward_models) | {comparison.proxy: changed}
        return comparison.model_copy(update={"reward_models": models})
    return comparison.model_copy(update={"arms": dict(comparison.arms) | {label: changed}})


def upstream_digest(comparison: Comparison) -> str:
    """Digest of what tuned values belong to: model, data, gold, SFT and their seeds."""
    semantic = comparison.semantic()
    about = {name: semantic[name] for name in ("model", "data", "gold", "sft")}
    about["seeds"] = {name: semantic["seeds"][name] for name in ("data", "sft")}
    return hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()
