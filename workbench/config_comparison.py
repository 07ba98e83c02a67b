"""The whole config: `Comparison`, the checks across its sections, and its digest."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import Field, model_validator

from workbench.config_arms import ARM_KINDS, DPO, PPO, SFT, Arm, BestOfN, RewardModel
from workbench.config_arms_online import GRPO, RLOO
from workbench.config_base import RESERVED_LABELS, SLUG, Label, Problem, Section, refuse
from workbench.config_data import Data
from workbench.config_decision import Decision
from workbench.config_judges import CONNECTION, RESERVED_JUDGES, Judge
from workbench.config_labels import label_problems
from workbench.config_sampling import Sampling
from workbench.config_sections import (
    Evaluation,
    Gold,
    Model,
    ResourcesConfig,
    Seeds,
    Selection,
    Tracking,
)
from workbench.config_tuning import REWARD_MODEL, Tuning, tuning_problems

# Sections that may be left empty (a block whose lines are all commented out is null).
_DEFAULTED = (
    "seeds", "reward_models", "judges", "evaluation", "sampling", "selection", "decision", "resources", "tracking",
)  # fmt: skip


class Comparison(Section):
    """One matched comparison of arms on the same preference data."""

    name: Annotated[str, Field(pattern=SLUG)] = Field(description="Name of the comparison and of its experiment.")
    description: str = Field(default="", description="A line for people; no influence on anything.")
    seeds: Seeds = Field(default_factory=Seeds, description="Seeds; a plain list is short for `runs`.")
    model: Model = Field(description="The policy that every arm starts from.")
    data: Data = Field(description="The preference pairs, the same for every arm.")
    gold: Gold | None = Field(
        default=None, description="The truth that no arm sees; with data.world its own, else none."
    )
    sft: SFT | None = Field(
        default=None,
        description="Supervised fine-tuning before the arms; none: the model is the SFT (default with policy).",
    )
    reward_models: dict[Label, RewardModel] = Field(
        default_factory=lambda: {"main": RewardModel()},
        min_length=1,
        description="Explicit reward models by name; `main` is the proxy by which all arms are scored.",
    )
    arms: dict[Label, Arm] = Field(min_length=1, description="What is compared, by label; kind defaults to the label.")
    judges: dict[Label, Judge] = Field(
        default_factory=dict, description="Judges beside gold and proxy, by name; evaluation.judges calls them."
    )
    evaluation: Evaluation = Field(default_factory=Evaluation, description="How every policy is sampled and judged.")
    sampling: Sampling = Field(default_factory=Sampling, description="What draws the responses that are compared.")
    selection: Selection = Field(default_factory=Selection, description="Which checkpoint is compared.")
    decision: Decision = Field(default_factory=Decision, description="What difference matters, and what may be served.")
    resources: ResourcesConfig = Field(default_factory=ResourcesConfig, description="What the run may use.")
    tracking: Tracking = Field(default_factory=Tracking, description="MLflow.")
    tuning: Tuning | None = Field(
        default=None, description="What `workbench tune` may try and spend; null: its defaults."
    )

    @property
    def proxy(self) -> str:
        """Name of the reward model that scores every arm: `main`, else the first one."""
        return "main" if "main" in self.reward_models else next(iter(self.reward_models))

    def semantic(self) -> dict[str, Any]:
        """The fields that can change a result, JSON-able: all but description, tracking, tuning, resources.workers and
        how a judge's endpoint or a sampling server is reached."""
        dump = self.model_dump(mode="json", exclude={"description": True, "tracking": True, "tuning": True})
        del dump["resources"]["workers"]
        dump["sampling"] = self.sampling.semantic()
        if not dump["sampling"]:
            del dump["sampling"]
        for judge in dump["judges"].values():
            for name in CONNECTION:
                judge.pop(name, None)
        return dump

    def digest(self) -> str:
        """sha256 (hex) of the canonical JSON of `semantic()`."""
        text = json.dumps(self.semantic(), sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
        return hashlib.sha256(text.encode()).hexdigest()

    @model_validator(mode="before")
    @classmethod
    def _normalize(cls, raw: Any) -> Any:
        """Short forms and defaults that depend on other sections; values of a wrong type are left to the fields."""
        if not isinstance(raw, Mapping):
            return raw
        new = {key: value for key, value in raw.items() if value is not None or key not in _DEFAULTED}
        if isinstance(new.get("seeds"), list):
            new["seeds"] = {"runs": new["seeds"]}
        for name in ("sft", "gold"):
            if new.get(name) == "none":
                new[name] = None
        trained_from_scratch = _get(new.get("model"), "world") is not None
        if "gold" not in new and _get(new.get("data"), "world") is not None:
            new["gold"] = {"world": True}
        if "sft" not in new and trained_from_scratch:
            new["sft"] = {}
        if isinstance(new.get("sft"), Mapping):
            new["sft"] = {"corpus": "world" if trained_from_scratch else "chosen", **new["sft"]}
        for name in ("arms", "reward_models"):
            if isinstance(new.get(name), Mapping):
                new[name] = {label: {} if block is None else block for label, block in new[name].items()}
        if isinstance(new.get("arms"), Mapping):
            new["arms"] = {label: _with_kind(label, block) for label, block in new["arms"].items()}
        return new

    @model_validator(mode="after")
    def _check(self) -> Comparison:
        refuse([*self._source_problems(), *self._arm_problems(), *self._judging_problems(), *self._tuning_problems()])
        refuse([*self._sampling_problems(), *self._process_problems()])
        return self

    def _sampling_problems(self) -> list[Problem]:
        """A server with one policy can sample the SFT alone, and so best-of-n: all arms are sampled by one path. What
        it takes of its processors is not known."""
        server, limits = self.sampling.server, self.decision.max_cost_per_answer
        if server is not None and limits is not None and (limits.cpu_s is not None or limits.gpu_s is not None):
            message = "a server's seconds are not measured; with sampling.server limit tokens or flops"
            return [(("decision", "max_cost_per_answer"), message)]
        others = [label for label, arm in self.arms.items() if not isinstance(arm, BestOfN)]
        if server is None or not server.one_policy or not others:
            return []
        message = f"got '{server.model}', one policy, but {', '.join(others)} must be sampled by the same server; "
        message += "write {model} where it serves any folder, or give sampling.server.command"
        return [(("sampling", "server", "model"), message)]

    def _process_problems(self) -> list[Problem]:
        """Every process needs a row of every step."""
        steps: dict[str, int] = {} if self.sft is None else {"sft": self.sft.batch_size}
        steps |= {f"reward_models.{name}": one.batch_size for name, one in self.reward_models.items() if not one.path}
        for label, arm in self.arms.items():
            if not isinstance(arm, BestOfN):
                steps[f"arms.{label}"] = arm.batch_size // (1 if isinstance(arm, DPO) else arm.minibatches)
        place, rows = min(steps.items(), key=lambda one: one[1], default=("", self.resources.processes))
        if rows >= self.resources.processes:
            return []
        message = f"got {self.resources.processes}, expected at most {rows}, the rows of a step of {place}"
        return [(("resources", "processes"), f"{message}: the others would have nothing to do")]

    def _tuning_problems(self) -> list[Problem]:
        """What is tuned must be there, and its judge must not be the comparison's."""
        blocks: dict[str, Section] = {**self.arms, REWARD_MODEL: self.reward_models[self.proxy]}
        known = {*RESERVED_JUDGES, *(name for name, judge in self.judges.items() if judge.kind != "human")}
        judges, has_gold = self.evaluation.judges, self.gold is not None
        found = [*tuning_problems(self.tuning, blocks, judges, known, self.seeds.runs, has_gold=has_gold)]
        for place, name in enumerate(self.tuning.declared if self.tuning is not None else ()):
            if name not in blocks:
                message = f"got '{name}', expected one of {', '.join(sorted(blocks))}"
                found.append((("tuning", "declared", place), message))
        return found

    def _source_problems(self) -> list[Problem]:
        """Model, data, gold and SFT must fit each other."""
        found: list[Problem] = []
        if self.data.world and self.gold is None:
            message = "got none, but data.world's annotators label by gold: leave gold out, or write {world: true}"
            found.append((("gold",), message))
        if self.data.simulate and self.gold is None:
            message = "got none, but data.simulate labels by gold: write gold: {python: 'module:function'}"
            found.append((("gold",), message))
        if self.gold and self.gold.world and not self.data.world:
            found.append((("gold", "world"), "needs data.world; use gold.python or gold.reward_model with other data"))
        if self.model.world and not self.data.world:
            message = (
                "needs data.world: the world's model reads the world's words only; set model.policy for other data"
            )
            found.append((("model", "world"), message))
        if self.model.world and self.sft is None:
            message = "got none, but model.world starts untrained: give an sft block (sft: {} has working defaults)"
            found.append((("sft",), message))
        if self.sft and self.sft.corpus == "world" and not self.model.world:
            message = "got 'world', which needs model.world; use 'chosen', or sft: none where the model is the SFT"
            found.append((("sft", "corpus"), message))
        if self.sft and self.sft.corpus == "chosen" and not self.data.preferences:
            message = "got 'chosen', which needs data.preferences: these pairs are sampled from the SFT policy itself"
            found.append((("sft", "corpus"), message))
        known = self.data.pairs if self.data.world else self.data.simulate.pairs if self.data.simulate else None
        learners: dict[tuple[str, str], RewardModel | DPO] = {
            **{("reward_models", name): model for name, model in self.reward_models.items()},
            **{("arms", label): arm for label, arm in self.arms.items() if isinstance(arm, DPO)},
        }
        for place, learner in learners.items():
            if known is not None and learner.pairs is not None and learner.pairs > known:
                message = f"got {learner.pairs}, expected at most the training pairs that there are ({known})"
                found.append(((*place, "pairs"), message))
        for name, model in self.reward_models.items():
            pinned = model.revision is not None and re.fullmatch(r"[0-9a-f]{40}", model.revision)
            source = model.path or model.base
            if self.model.trust_remote_code and source and not os.path.isabs(source) and not pinned:
                message = "expected a full commit (40 hex digits): with model.trust_remote_code the code that runs is"
                found.append((("reward_models", name, "revision"), f"got {model.revision}, {message} pinned"))
        longest, response, prompt = (
            self.model.max_length,
            self.evaluation.max_response_tokens,
            self.model.max_prompt_tokens or 1,
        )
        if longest and prompt + response > longest:
            message = f"got {response} beside prompts of up to {prompt} tokens, expected at most model.max_length"
            found.append((("evaluation", "max_response_tokens"), f"{message} ({longest}) together"))
        return found

    def _arm_problems(self) -> list[Problem]:
        """Every reward that an arm names must exist and be of a kind that the arm can use."""
        found: list[Problem] = []
        models = ", ".join(self.reward_models)
        dpo_arms = [label for label, arm in self.arms.items() if isinstance(arm, DPO)]
        for label, arm in self.arms.items():
            if label in RESERVED_LABELS:
                message = f"'{label}' is reserved for the start of all arms and is always in the results; rename it"
                found.append((("arms", label), message))
            if label in self.reward_models:
                message = f"'{label}' is a reward model's name as well; rename one, so that `reward` is unambiguous"
                found.append((("arms", label), message))
            if isinstance(arm, RLOO | GRPO) and arm.reward not in self.reward_models:
                message = f"got '{arm.reward}', expected a reward model ({models})"
                if arm.reward in self.arms:
                    message += f": an arm's implicit reward cannot be trained on with {arm.kind}"
                found.append((("arms", label, "reward"), message))
            if isinstance(arm, PPO | BestOfN) and arm.reward not in {*self.reward_models, *dpo_arms}:
                usable = f"expected a reward model ({models}) or a dpo arm ({', '.join(dpo_arms) or 'there is none'})"
                found.append((("arms", label, "reward"), f"got '{arm.reward}', {usable}"))
        return [*found, *label_problems(self.arms, self.reward_models)]

    def _judging_problems(self) -> list[Problem]:
        """Judges need what they judge by, and the selector must not be the judge."""
        found: list[Problem] = []
        judges = self.evaluation.judges
        known = ", ".join([*sorted(RESERVED_JUDGES), *self.judges])
        for place, name in enumerate(judges):
            if name not in RESERVED_JUDGES and name not in self.judges:
                message = f"got '{name}', expected one of {known}; other judges are described under `judges`"
                found.append((("evaluation", "judges", place), message))
        message = "this name is reserved for the comparison's own scorer; rename the judge"
        found += [(("judges", name), message) for name in self.judges if name in RESERVED_JUDGES]
        if "gold" in judges and self.gold is None:
            message = (
                "got 'gold' but there is no gold: give one, or write judges: [proxy] and read win rates "
                "as success against the reward model that some arms were trained on"
            )
            found.append((("evaluation", "judges"), message))
        if self.selection.metric == "gold_reward" and self.gold is None:
            found.append((("selection", "metric"), "got 'gold_reward' but there is no gold; use 'proxy_reward'"))
        if self.selection.rule == "best":
            if self.evaluation.trajectory_prompts == 0:
                message = "got 0, but selection.rule best looks at every checkpoint; set it to 128, or use rule: last"
                found.append((("evaluation", "trajectory_prompts"), message))
            if self.selection.metric == "proxy_reward" and "proxy" in judges:
                message = "got 'proxy_reward', which is a judge as well; the selector must not judge what it selected"
                found.append((("selection", "metric"), message))
        return found


def _get(block: Any, name: str) -> Any:
    return block.get(name) if isinstance(block, Mapping) else getattr(block, name, None)


def _with_kind(label: Any, block: Any) -> Any:
    """The arm's block with its kind: the label, where it is one."""
    if isinstance(block, Mapping) and "kind" not in block and label in ARM_KINDS:
        return {"kind": label, **block}
    return block
