"""The config layer in one place: what the rest of the bench imports.

config_base.py        strict models, shared field types
config_data.py        data: sources, formats, pairings, splits, annotators
config_sections.py    model, gold, evaluation, selection, resources, tracking
config_arms.py        sft, reward models, ppo, dpo, best_of_n
config_arms_online.py rloo, grpo
config_label_use.py   data.labels: majority, soft or weighted labels, smoothing, margins
config_labels.py      which dpo arm learns from which
config_judges.py      judges beside gold and proxy
config_tuning.py      budget, ranges, objective, pruner and repeats of `workbench tune`
config_decision.py    margin and serving budget of the decision
config_sampling.py    what draws the responses that are compared: cache, server
config_comparison.py  the whole, with the checks across sections
config_yaml.py        YAML text to a tree in which every value knows its line
config_load.py        file and --set overrides to a Comparison, every error with its place
config_paths.py       shipped configs, what is a path, and whether it exists
config_text.py        JSON schema and commented starter
"""

from __future__ import annotations

from workbench.config_arms import ARM_KINDS, DPO, PPO, SFT, AdaptiveKL, Arm, BestOfN, RewardModel
from workbench.config_arms_online import GRPO, RLOO
from workbench.config_comparison import Comparison
from workbench.config_data import Annotator, Data, Simulate, Splits, default_annotators
from workbench.config_decision import AnswerCost, Decision
from workbench.config_judges import HumanJudge, LLMJudge, RewardModelJudge
from workbench.config_load import load_config
from workbench.config_paths import check_paths, shipped_config, shipped_names
from workbench.config_sampling import Sampling, SamplingServer
from workbench.config_sections import (
    Evaluation,
    Gold,
    Model,
    ResourcesConfig,
    Seeds,
    Selection,
    Tracking,
    WorldSize,
)
from workbench.config_text import json_schema, starter_yaml
from workbench.config_tuning import Tuning

__all__ = [
    "ARM_KINDS",
    "DPO",
    "GRPO",
    "PPO",
    "RLOO",
    "SFT",
    "AdaptiveKL",
    "Annotator",
    "AnswerCost",
    "Arm",
    "BestOfN",
    "Comparison",
    "Data",
    "Decision",
    "Evaluation",
    "Gold",
    "HumanJudge",
    "LLMJudge",
    "Model",
    "ResourcesConfig",
    "RewardModel",
    "RewardModelJudge",
    "Sampling",
    "SamplingServer",
    "Seeds",
    "Selection",
    "Simulate",
    "Splits",
    "Tracking",
    "Tuning",
    "WorldSize",
    "check_paths",
    "default_annotators",
    "json_schema",
    "load_config",
    "shipped_config",
    "shipped_names",
    "starter_yaml",
]
