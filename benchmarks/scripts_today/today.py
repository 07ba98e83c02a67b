"""What the scripts of today share: the plan, sampling with transformers' generate(), scoring in batches, the report.

Each script is a process of its own, `python SCRIPT.py PLAN [NAME]`: it reads the plan (sizes and rates, the same that
the workbench gets), loads and tokenizes for itself, works in float32 on the CPU, and writes `NAME.json` beside the plan
with what it did. A careful user's choices, not TRL's defaults: no bfloat16, no gradient checkpointing, large batches
where no gradient is needed, rows sorted by length before they are padded.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

BORN = time.perf_counter()
BATCH = 256


def read_plan() -> tuple[dict[str, Any], Path, str]:
    """The plan, the folder that scripts write to, and the name under which this one reports."""
    path = Path(sys.argv[1])
    name = sys.argv[2] if len(sys.argv) > 2 else Path(sys.argv[0]).stem
    return json.loads(path.read_text()), path.parent, name


def write_report(folder: Path, name: str, imported_s: float, **done: Any) -> None:
    """Says what was done, and how long it took without the imports."""
    done |= {"imports_s": imported_s, "work_s": time.perf_counter() - BORN - imported_s}
    (folder / f"{name}.json").write_text(json.dumps(done))


def since_start() -> float:
    """Seconds since the script began; called once its imports are through."""
    return time.perf_counter() - BORN


def read_rows(path: str | Path) -> list[dict[str, Any]]:
    """Rows of a jsonl file."""
    return [json.loads(line) for line in Path(path).read_text().splitlines()]


def write_rows(path: Path, rows: list[dict[str, Any]]) -> None:
    """Writes a jsonl file."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def training_arguments(block: dict[str, Any], folder: Path, *, save_steps: int | None = None) -> dict[str, Any]:
    """Arguments that all of TRL's trainers get; `block` is a block of the plan with its number of steps."""
    saving = {"save_strategy": "steps", "save_steps": save_steps} if save_steps else {"save_strategy": "no"}
    return saving | {
        "output_dir": str(folder),
        "max_steps": block["steps"],
        "per_device_train_batch_size": block["batch_size"],
        "per_device_eval_batch_size": BATCH,
        "learning_rate": block["learning_rate"],
        "lr_scheduler_type": block["schedule"],
        "warmup_steps": round(block["warmup_fraction"] * block["steps"]),
        "weight_decay": block["weight_decay"],
        "max_grad_norm": block["max_grad_norm"],
        "seed": block["seed"],
        "use_cpu": True,
        "bf16": False,
        "gradient_checkpointing": False,
        "dataloader_pin_memory": False,
        "report_to": "none",
        "disable_tqdm": True,
    }


def sample(model: Any, tokenizer: Any, prompts: list[str], tokens: int, seed: int) -> list[dict[str, Any]]:
    """One response per prompt by generate(), from the whole distribution at temperature 1."""
    import torch

    torch.manual_seed(seed)
    tokenizer.padding_side = "left"
    found: list[dict[str, Any]] = []
    for start in range(0, len(prompts), BATCH):
        batch = tokenizer(prompts[start : start + BATCH], return_tensors="pt", padding=True)
        with torch.inference_mode():
            out = model.generate(
                input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], do_sample=True, temperature=1.0,
                top_k=0, top_p=1.0, max_new_tokens=tokens, pad_token_id=tokenizer.pad_token_id,
                eos_token_id=tokenizer.eos_token_id,
            )[:, batch["input_ids"].shape[1] :]  # fmt: skip
        texts = tokenizer.batch_decode(out, skip_special_tokens=True)
        ended = (out == tokenizer.eos_token_id).any(1).tolist()
        found += [{"response": text, "finished": end} for text, end in zip(texts, ended, strict=True)]
    return found


def _padded(tokenizer: Any, rows: list[list[int]]) -> tuple[Any, Any]:
    import torch

    width = max(map(len, rows))
    ids = torch.tensor([row + [tokenizer.pad_token_id] * (width - len(row)) for row in rows])
    mask = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in rows])
    return ids, mask


def encode(tokenizer: Any, prompts: list[str], samples: list[dict[str, Any]]) -> tuple[list[list[int]], list[int]]:
    """Ids of prompts with their responses, end token included, and how many of them are the prompt's."""
    heads = tokenizer(prompts)["input_ids"]
    tails = tokenizer([one["response"] for one in samples])["input_ids"]
    ends = [[tokenizer.eos_token_id] if one["finished"] else [] for one in samples]
    return [a + b + c for a, b, c in zip(heads, tails, ends, strict=True)], [len(head) for head in heads]


def scores(model: Any, tokenizer: Any, rows: list[list[int]]) -> list[float]:
    """The reward model's score of each row of ids."""
    import torch

    found = [0.0] * len(rows)
    order = sorted(range(len(rows)), key=lambda i: len(rows[i]))
    for start in range(0, len(order), BATCH):
        picked = order[start : start + BATCH]
        ids, mask = _padded(tokenizer, [rows[i] for i in picked])
        with torch.inference_mode():
            values = model(input_ids=ids, attention_mask=mask).logits.squeeze(-1).tolist()
        for i, value in zip(picked, values, strict=True):
            found[i] = value
    return found


def logprobs(model: Any, tokenizer: Any, rows: list[list[int]], heads: list[int]) -> list[float]:
    """Summed log-probability of each response, nats at temperature 1."""
    import torch

    found = [0.0] * len(rows)
    order = sorted(range(len(rows)), key=lambda i: len(rows[i]))
    for start in range(0, len(order), BATCH):
        picked = order[start : start + BATCH]
        ids, mask = _padded(tokenizer, [rows[i] for i in picked])
        first = torch.tensor([heads[i] for i in picked])
        counted = mask[:, 1:].bool() & (torch.arange(1, ids.shape[1]) >= first[:, None])
        with torch.inference_mode():
            logits = model(input_ids=ids, attention_mask=mask).logits[:, :-1]
            chosen = logits.gather(2, ids[:, 1:, None]).squeeze(2) - logits.logsumexp(2)
        for i, value in zip(picked, (chosen * counted).sum(1).tolist(), strict=True):
            found[i] = value
    return found
