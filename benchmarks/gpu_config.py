"""configs/gpu.yaml without a GPU and without the hub: what it should take, and whether it runs with stand-ins.

    python benchmarks/gpu_config.py estimate [--json]                 # memory and time by `workbench doctor`'s counts
    python benchmarks/gpu_config.py run --home DIR [--set a.b=c]...   # the same file, small models and made-up data

`estimate` counts with the size of Qwen2.5-0.5B (its config.json) and stated GPUs; nothing is measured. `run` makes a
random Qwen2 of two layers with a byte-level tokenizer in Qwen's form and its chat template, conversations as
UltraFeedback has them, and runs `configs/gpu.yaml` with them: fewer steps, samples and tokens, on whatever device there
is, all else as the file says. Its numbers mean nothing; that it ends with a certificate does.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
if __package__ in (None, ""):  # started as a file
    sys.path.insert(0, str(ROOT))

CONFIG = ROOT / "configs/gpu.yaml"
QWEN_05B = {
    "parameters": 494_032_768, "hidden": 896, "layers": 24, "key_value": 128, "intermediate": 4864,
    "vocabulary": 151_936, "context": 32_768,
}  # fmt: skip
GPUS = {"24 GB": (24e9, 165e12), "80 GB": (80e9, 312e12)}  # memory; dense bfloat16 operations a second of such a card
TOKENS = {"mean_prompt": 160.0, "mean_response": 300.0}  # of UltraFeedback, about
WORDS = ("how", "do", "I", "make", "bread", "rise", "in", "the", "cold", "kitchen", "please", "warm", "water", "yeast")
CHAT = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
SMALL = (
    "model.max_prompt_tokens=96", "model.max_length=160", "data.splits={validation: 0.2, test: 0.3}",
    "reward_models.main.batch_size=16", "arms.ppo.updates=3", "arms.ppo.batch_size=8",
    "arms.ppo.critic_warmup_updates=1", "arms.ppo.checkpoint_every_updates=2", "arms.dpo.batch_size=16",
    "arms.dpo-0.3.batch_size=16",
    "arms.best_of_n.n=2", "evaluation.prompts=16", "evaluation.samples_per_prompt=2", "evaluation.trajectory_prompts=8",
    "evaluation.max_response_tokens=16", "evaluation.batch_size=32",
)  # fmt: skip


def estimates() -> dict[str, Any]:
    """Each stated GPU's forecast, as `workbench doctor --json` has it."""
    from workbench.config import load_config
    from workbench.estimate import Size, setting_of
    from workbench.estimate_stages import Lengths, Needs
    from workbench.forecast import Forecast, Machine

    comparison = load_config(CONFIG)
    model, limit = comparison.model, comparison.data.limit
    assert model.lora is not None
    assert model.max_prompt_tokens is not None
    assert limit is not None
    policy = Size(**QWEN_05B)
    response = float(comparison.evaluation.max_response_tokens)
    lengths = Lengths(
        prompt=model.max_prompt_tokens, response=comparison.evaluation.max_response_tokens, pairs=int(0.95 * limit),
        mean_prompt=TOKENS["mean_prompt"], mean_response=min(TOKENS["mean_response"], response),
    )  # fmt: skip
    setting = setting_of("cuda", "bfloat16", model.lora, model.gradient_checkpointing)
    needs = Needs(comparison, setting, policy, dict.fromkeys(comparison.reward_models, policy), lengths).all()
    return {
        name: Forecast(
            needs=needs, lengths=lengths, machine=Machine(device="cuda", memory=memory, rate=rate, workers=1)
        ).to_json()
        for name, (memory, rate) in GPUS.items()
    }


def table(found: dict[str, Any]) -> str:
    """The estimates for people."""
    lines = [
        f"| stage | memory, GB | {' | '.join(f'time, {name}' for name in found)} |",
        "|---|---|" + "---|" * len(found),
    ]
    for rows in zip(*(one["stages"] for one in found.values()), strict=True):
        times = " | ".join(f"{row['wall_s'] / 60:.0f} min" for row in rows)
        lines.append(f"| {rows[0]['stage']} | {rows[0]['memory_bytes'] / 1e9:.1f} | {times} |")
    whole = " | ".join(f"{one['wall_s'] / 3600:.1f} h" for one in found.values())
    return "\n".join([*lines, f"| all | {max(r['memory_bytes'] for r in one_of(found)) / 1e9:.1f} | {whole} |"])


def one_of(found: dict[str, Any]) -> list[dict[str, Any]]:
    """The stages of any GPU: memory is the same."""
    stages: list[dict[str, Any]] = next(iter(found.values()))["stages"]
    return stages


def stand_ins(folder: Path, rows: int = 120) -> tuple[Path, Path]:
    """(model folder, preference file) in the forms of those that the config names."""
    rng = random.Random(0)

    def text(least: int, most: int) -> str:
        return " ".join(rng.choices(WORDS, k=rng.randint(least, most))).capitalize() + "."

    pairs = []
    for number in range(rows):
        asked = [{"role": "user", "content": f"{text(4, 12)} {number}?"}]
        answers = [[*asked, {"role": "assistant", "content": text(2, 14)}] for _ in range(2)]
        pairs.append({"chosen": answers[0], "rejected": answers[1], "score_chosen": 8.0, "score_rejected": 5.0})
    data = folder / "pairs.jsonl"
    data.write_text("".join(json.dumps(one) + "\n" for one in pairs), encoding="utf-8")
    model = folder / "model"
    _model(model, [message["content"] for one in pairs for message in one["chosen"]])
    return model, data


def _model(folder: Path, texts: list[str]) -> None:
    import torch
    from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, trainers
    from tokenizers.decoders import ByteLevel
    from transformers import PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM

    from workbench.data.cuts import QWEN

    backend = Tokenizer(models.BPE())
    backend.normalizer = normalizers.NFC()
    split = pre_tokenizers.Split(Regex(QWEN), "isolated")
    backend.pre_tokenizer = pre_tokenizers.Sequence([split, pre_tokenizers.ByteLevel(False, use_regex=False)])
    backend.decoder = ByteLevel()
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=400, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    backend.train_from_iterator(texts, trainer)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, eos_token="<|im_end|>", pad_token="<|endoftext|>", chat_template=CHAT
    )
    torch.manual_seed(0)
    config = Qwen2Config(
        vocab_size=len(tokenizer), hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=256, tie_word_embeddings=True, initializer_range=0.2,
        eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id, bos_token_id=None,
    )  # fmt: skip
    Qwen2ForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def overrides(model: Path, data: Path) -> list[str]:
    """--set options that put the stand-ins in place and make the run small."""
    return [f"model.policy={model}", "model.revision=null", f"data.preferences={data}", *SMALL]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("task", choices=["estimate", "run"])
    parser.add_argument("--home", type=Path, help="of the run")
    parser.add_argument("--set", action="append", default=[], help="as for workbench compare")
    parser.add_argument("--json", action="store_true", help="print one object")
    options = parser.parse_args()
    if options.task == "estimate":
        found = estimates()
        print(json.dumps(found, indent=1) if options.json else table(found))
        return
    if options.home is None:
        parser.error("run needs --home")
    from workbench.cli import main as workbench

    options.home.mkdir(parents=True, exist_ok=True)
    if not (options.home / "model").exists():
        stand_ins(options.home)
    small = [*overrides(options.home / "model", options.home / "pairs.jsonl"), *options.set]
    arguments = ["compare", str(CONFIG), "--home", str(options.home), *(["--json"] if options.json else [])]
    workbench([*arguments, *(word for one in small for word in ("--set", one))])


if __name__ == "__main__":
    main()
