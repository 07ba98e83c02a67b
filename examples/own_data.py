"""Your own pairs, your own model, your own truth: check the data, look at it, compare PPO, DPO and best-of-n on it.

    python examples/own_data.py [FOLDER]          # default: teashop-example; under a minute on two cores

A tea shop answers complaints. The pairs are made here, a tenth of their labels is wrong, and the model is so small that
it trains in seconds: replace `write_pairs` and `write_model` by your file and your folder, and keep the rest.
"""

from __future__ import annotations

import itertools
import json
import random
import shlex
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

ITEMS = ("teapot", "kettle", "mug", "tray", "spoon", "jar", "saucer", "strainer", "tin", "whisk")
FAULTS = ("cracked", "late", "empty", "rusty", "dented", "wet", "dirty", "open")
GREETINGS = ("hello", "hi", "please help", "good morning")
OPENINGS = ("sorry ,", "well ,", "dear customer ,")
REMEDIES = ("we send a new", "we refund the", "you may keep the", "we know nothing of a")
CLOSINGS = ("today .", "next month .", ".")

CONFIG = """\
# Written by own_data.py, each time that it runs: change it there.
name: teashop
model: {policy: model}                  # a folder or a hub id; relative to this file
data:  {preferences: pairs.jsonl}       # rows {"prompt", "chosen", "rejected"}
gold:  {python: "own_data:gold"}        # where you know the truth; without it, judges decide (own_judge.py)
sft:   {corpus: chosen, steps: 150, batch_size: 32}   # or none: your model is the SFT already
reward_models: {main: {epochs: 4, batch_size: 32, center_samples: 64}}
arms:
  ppo: {updates: 12, batch_size: 32, kl_coef: 0.1}
  dpo: {beta: 0.3, epochs: 3, batch_size: 32}
  best_of_n: {n: 8}
evaluation: {prompts: 32, samples_per_prompt: 4, max_response_tokens: 16, trajectory_prompts: 16, judges: [gold]}
decision: {margin: 0.03}                # arms whose win rate over each other is nearer to 0.5 are the same to you
"""


def gold(prompts: Sequence[str], responses: Sequence[str]) -> list[float]:
    """The truth that no arm sees: a good answer is sorry, sends or refunds the right thing, and does so today."""
    scores = []
    for prompt, response in zip(prompts, responses, strict=True):
        item = next((word for word in prompt.split() if word in ITEMS), "nothing")
        helps = any(f"{remedy} {item}" in response for remedy in REMEDIES[:2])
        scores.append(2.0 * helps + 1.0 * ("sorry" in response) + 0.5 * ("today" in response))
    return scores


def answer(draw: random.Random, item: str) -> str:
    """What somebody at the shop might write; sometimes about another thing."""
    named = item if draw.random() < 0.7 else draw.choice(ITEMS)
    return f" {draw.choice(OPENINGS)} {draw.choice(REMEDIES)} {named} {draw.choice(CLOSINGS)}"


def write_pairs(path: Path, seed: int = 0) -> None:
    """Two answers per complaint; a customer prefers the better one, nine times of ten."""
    draw = random.Random(seed)
    with path.open("w", encoding="utf-8") as file:
        for greeting, item, fault in itertools.product(GREETINGS, ITEMS, FAULTS):
            prompt = f"{greeting} , my {item} came {fault} :"
            first, second = (answer(draw, item) for _ in range(2))
            difference = gold([prompt], [second])[0] - gold([prompt], [first])[0]
            if difference == 0:
                continue  # who cannot tell them apart has no preference
            better, worse = (second, first) if (difference > 0) != (draw.random() < 0.1) else (first, second)
            file.write(json.dumps({"prompt": prompt, "chosen": better, "rejected": worse}) + "\n")


def write_model(folder: Path) -> None:
    """An untrained Llama of 30,000 parameters that reads the words of the shop."""
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
    from transformers.utils import logging

    logging.disable_progress_bar()

    texts = (*ITEMS, *FAULTS, *GREETINGS, *OPENINGS, *REMEDIES, *CLOSINGS, "my came :")
    words = dict.fromkeys(["<pad>", "<s>", "</s>", "<unk>", *" ".join(texts).split()])
    words_only = Tokenizer(models.WordLevel({word: place for place, word in enumerate(words)}, unk_token="<unk>"))
    words_only.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    special = {"pad_token": "<pad>", "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    PreTrainedTokenizerFast(tokenizer_object=words_only, **special).save_pretrained(folder)
    torch.manual_seed(0)
    size = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 84}
    ids = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
    config = LlamaConfig(vocab_size=len(words), max_position_embeddings=64, **size, **ids)
    LlamaForCausalLM(config).save_pretrained(folder)


def workbench(*words: str | Path) -> None:
    """Runs a command as you would type it; `own_data:gold` is found because it runs in this file's folder."""
    print("\n$ workbench", shlex.join(map(str, words)), flush=True)
    command = [sys.executable, "-m", "workbench.cli", *map(str, words)]
    code = subprocess.run(command, cwd=Path(__file__).parent, check=False).returncode
    if code:
        sys.exit(code)  # the command has said why


def prepare(folder: Path) -> Path:
    """The three files of the example; the config. What you change above counts from the next run on."""
    folder.mkdir(parents=True, exist_ok=True)
    write_pairs(folder / "pairs.jsonl")
    if not (folder / "model" / "model.safetensors").exists():
        write_model(folder / "model")
    (folder / "teashop.yaml").write_text(CONFIG, encoding="utf-8")
    return folder / "teashop.yaml"


def main(folder: Path, *options: str) -> None:
    """Check, describe, compare; then what to open."""
    config, home = prepare(folder), folder / "home"
    workbench("data", "check", "--config", config)
    workbench("data", "describe", "--config", config, "--home", home)
    workbench("compare", config, "--home", home, *options)
    print(f"\nThe whole comparison as one page: {home / 'results' / 'teashop' / 'report.html'}")


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "teashop-example").resolve(), *sys.argv[2:])
