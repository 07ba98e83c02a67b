"""The JSON schema of a config, for editors, and the commented starter; both speak with the fields' descriptions."""

from __future__ import annotations

from typing import Any

from workbench.config_arms import ARM_KINDS
from workbench.config_base import LABEL
from workbench.config_comparison import Comparison
from workbench.config_messages import description_of


def json_schema() -> dict[str, Any]:
    """JSON schema (draft 2020-12) of a config *file*, short forms included.

    Returns:
        The schema as JSON-able data. It knows names, types and ranges; checks across fields need `load_config`.
    """
    schema = Comparison.model_json_schema()
    properties = schema["properties"]
    properties["seeds"] = _either(properties["seeds"], {"type": "array", "items": {"type": "integer", "minimum": 0}})
    for name in ("sft", "gold"):
        properties[name] = _either(properties[name], {"const": "none"})
    for name in ("seeds", "reward_models", "judges", "evaluation", "selection", "decision", "resources", "tracking"):
        properties[name] = _either(properties[name], {"type": "null"})
    blocks = {kind: {"$ref": f"#/$defs/{section.__name__}"} for kind, section in ARM_KINDS.items()}
    properties["arms"] = {
        "description": properties["arms"]["description"],
        "type": "object",
        "minProperties": 1,
        "propertyNames": {"pattern": LABEL, "not": {"const": "sft"}},
        # A label that is a kind may leave `kind` out, and may be empty; it may name another kind as well.
        "properties": {
            kind: {
                "anyOf": [
                    {"type": "null"},
                    {"allOf": [block, {"type": "object"}]},
                    {
                        "type": "object",
                        "required": ["kind"],
                        "oneOf": [blocks[other] for other in blocks if other != kind],
                    },
                ]
            }
            for kind, block in blocks.items()
        },
        "additionalProperties": {"type": "object", "required": ["kind"], "oneOf": list(blocks.values())},
    }
    for field in ("critic_learning_rate",):
        _nullable(schema["$defs"]["PPO"]["properties"], field)
    for field in ("report_n", "pool"):
        _nullable(schema["$defs"]["BestOfN"]["properties"], field)
    lora = schema["$defs"]["LoraAdapter"]["properties"]
    lora["target_modules"] = _either(lora["target_modules"], {"type": "string"})
    for name, info in Comparison.model_fields.items():  # pydantic leaves out those that repeat a section's own
        properties[name]["description"] = info.description
    schema["$schema"] = "https://json-schema.org/draft/2020-12/schema"
    schema["title"] = "Alignment workbench config"
    return schema


def _either(first: dict[str, Any], second: dict[str, Any]) -> dict[str, Any]:
    """A property that takes one form or another; description and default stay outside, where editors look."""
    kept: dict[str, Any] = {key: first[key] for key in ("description", "default") if key in first}
    inner = {key: value for key, value in first.items() if key not in kept}
    options = inner["anyOf"] if set(inner) == {"anyOf"} else [inner]
    return {**kept, "anyOf": [*options, second]}


def _nullable(properties: dict[str, Any], field: str) -> None:
    properties[field] = _either(properties[field], {"type": "null"})


_HEAD = """\
# A comparison of RM+PPO, DPO and best-of-n on the same preference data.
#
#   workbench plan THIS-FILE       what would run
#   workbench compare THIS-FILE    runs it; killed or repeated, it continues where it was
#   --set arms.dpo.beta=0.5        changes one field for one run
#
# As it stands it uses the embedded helpdesk world, whose true reward is known: nothing to download, minutes on a CPU.
# For your own model and pairs, put the block at the end in place of model, data, gold and sft.
# Relative paths are relative to this file. Every field has a default but name, model, data and arms.
"""

# (location, value as YAML; "" opens a block)
_LINES: tuple[tuple[str, str], ...] = (
    ("name", "my-comparison"),
    ("seeds", ""),
    ("seeds.runs", "[0]"),
    ("model", ""),
    ("model.world", "helpdesk"),
    ("data", ""),
    ("data.world", "helpdesk"),
    ("data.pairs", "2000"),
    ("data.validation_pairs", "400"),
    ("data.test_pairs", "400"),
    ("gold", ""),
    ("gold.world", "true"),
    ("sft", ""),
    ("sft.corpus", "world"),
    ("sft.steps", "400"),
    ("sft.batch_size", "64"),
    ("sft.learning_rate", "5e-3"),
    ("reward_models", ""),
    ("reward_models.main", ""),
    ("reward_models.main.epochs", "3"),
    ("reward_models.main.batch_size", "32"),
    ("reward_models.main.learning_rate", "2e-3"),
    ("arms", ""),
    ("arms.ppo", ""),
    ("arms.ppo.kl_coef", "0.1"),
    ("arms.ppo.updates", "55"),
    ("arms.ppo.batch_size", "128"),
    ("arms.ppo.learning_rate", "2e-4"),
    ("arms.dpo", ""),
    ("arms.dpo.beta", "0.3"),
    ("arms.dpo.epochs", "2"),
    ("arms.dpo.learning_rate", "5e-4"),
    ("arms.best_of_n", ""),
    ("arms.best_of_n.n", "16"),
    ("evaluation", ""),
    ("evaluation.prompts", "256"),
    ("evaluation.samples_per_prompt", "4"),
    ("evaluation.max_response_tokens", "48"),
    ("evaluation.judges", "[gold]"),
    ("selection", ""),
    ("selection.rule", "last"),
    ("decision", ""),
    ("decision.margin", "0.03"),
    ("decision.max_kl", "null"),
    ("decision.max_cost_per_answer", "null"),
    ("resources", ""),
    ("resources.threads", "1"),
    ("resources.workers", "2"),
    ("tracking", ""),
    ("tracking.uri", "null"),
)

_OWN = """\
# ---- your own model and pairs: uncomment from here on, and remove model, data, gold and sft above ----
#model:
#  policy: ./my-model                 # folder with safetensors, or a hub id such as org/name
#  stop_token_ids: null               # null: the tokenizer's EOS
#  lora: null                         # or {rank: 16, alpha: 32}: adapters for reward models and arms alike;
#                                     # {rank: 16, alpha: 32, quantize: nf4}: on a base in 4 bits
#data:
#  preferences: ./pairs.jsonl         # rows of {"prompt", "chosen", "rejected"}; or parquet, csv, a hub id
#  splits: {validation: 0.1, test: 0.1}
#gold: none                           # or {python: "my_module:score"}: a truth that no arm sees
#sft: none                            # none: the model is the SFT. {corpus: chosen} trains it on chosen responses first
# ---- then also ----
# - without gold: evaluation.judges: [proxy]; win rates then mean success against the reward model
# - or a judge of your own, as in judges: {gpt: {kind: llm, url: 'https://…/v1', model: …, api_key_env: …}} with
#   evaluation.judges: [gpt]; also kind: reward_model (folder) and kind: human (verdicts: filled-in file)
# - the learning rates above suit a model of 0.1M parameters. For pretrained ones of 100M and more start near
#   1e-5 (sft, reward_models), 1e-6 (ppo) and 5e-7 (dpo), then tune every arm with the same budget: workbench tune
# - simpler than ppo, with the same reward model and no critic: rloo: {} and grpo: {} beside it under arms
# - evaluation.max_response_tokens: as long as the responses in your data
# - five seeds (seeds: [0, 1, 2, 3, 4]) before you compare methods rather than checkpoints
"""


def starter_yaml() -> str:
    """A commented config that runs as it is, with a block for the user's own model and pairs at the end."""
    lines = [_HEAD]
    for dotted, value in _LINES:
        loc = tuple(dotted.split("."))
        indent = "  " * (len(loc) - 1)
        entry = f"{indent}{loc[-1]}:{' ' + value if value else ''}"
        text = description_of(loc)
        if not value and len(loc) == 1:
            lines.append("")
        comment = f"{entry:<30} # {text}" if text else entry
        if len(comment) > 118:
            lines.append(f"{indent}# {text}")
            comment = entry
        lines.append(comment)
    return "\n".join([*lines, "", _OWN])
