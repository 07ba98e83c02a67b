"""Today, step 7: every policy on the test prompts, its checkpoints on validation prompts, and the table of arms.

Gold, proxy, KL to the SFT, DPO's implicit reward; win rates against the SFT with a bootstrap over prompts; how often
the implicit and the explicit reward order held-out pairs alike.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import today


def main() -> None:
    """Evaluates in one process, so that reward model, SFT and tokenizer are loaded once."""
    import numpy as np
    from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

    from workbench.worlds.helpdesk_gold import gold

    plan, folder, name = today.read_plan()
    imported_s = today.since_start()
    evaluation, implicit = plan["evaluation"], plan["implicit"]
    tokens = evaluation["max_response_tokens"]
    tokenizer = AutoTokenizer.from_pretrained(folder / "sft")
    reward = AutoModelForSequenceClassification.from_pretrained(folder / "reward", num_labels=1, dtype="float32").eval()

    def load(path: Path) -> Any:
        return AutoModelForCausalLM.from_pretrained(path, dtype="float32").eval()

    sft, dpo = load(folder / "sft"), load(folder / implicit)
    beta = plan["dpo"][implicit]["beta"]
    counts = {"samples": 0, "checkpoint_samples": 0, "checkpoints": 0, "scored": 0, "implicit": 0}

    def measured(policy: Any, prompts: list[str], *, with_implicit: bool) -> dict[str, Any]:
        drawn = today.sample(policy, tokenizer, prompts, tokens, plan["seed"] + 2)
        rows, heads = today.encode(tokenizer, prompts, drawn)
        under_sft = np.array(today.logprobs(sft, tokenizer, rows, heads))
        under = under_sft if policy is sft else np.array(today.logprobs(policy, tokenizer, rows, heads))
        texts = zip(prompts, drawn, strict=True)
        found = {
            "gold": np.array([gold(text, one["response"], one["finished"]) for text, one in texts]),
            "proxy": np.array(today.scores(reward, tokenizer, rows)),
            "kl": under - under_sft,
        }
        counts["scored"] += len(rows)
        if with_implicit:
            found["implicit"] = beta * (np.array(today.logprobs(dpo, tokenizer, rows, heads)) - under_sft)
            counts["implicit"] += len(rows)
        return found

    everything = today.read_rows(plan["prompts"])

    def prompts_of(split: str, count: int) -> list[str]:
        return [row["prompt"] for row in everything if row["split"] == split][:count]

    test, ood = prompts_of("test", evaluation["prompts"]), prompts_of("ood", evaluation["prompts"])
    held = prompts_of("validation", evaluation["trajectory_prompts"])
    repeats, table = evaluation["samples_per_prompt"], {}
    for label in plan["policies"]:
        policy = sft if label == "sft" else load(checkpoints(folder, label)[-1])
        table[label] = measured(policy, [text for text in test for _ in range(repeats)], with_implicit=True)
        counts["samples"] += len(test) * repeats
    measured(sft, [text for text in ood for _ in range(repeats)], with_implicit=True)
    counts["samples"] += len(ood) * repeats

    curves: dict[str, list[dict[str, float]]] = {}
    for label in plan["policies"]:
        folders = checkpoints(folder, label) if held else []
        curves[label] = []
        for path in folders:
            one = measured(sft if label == "sft" else load(path), held, with_implicit=False)
            curves[label].append({key: float(value.mean()) for key, value in one.items()})
            if label != "sft":  # the SFT itself is the first point of every curve
                counts["checkpoints"] += 1
                counts["checkpoint_samples"] += len(held)

    pairs = today.read_rows(folder / "pairs-test.jsonl")
    margins: dict[str, Any] = {"explicit": 0.0, "implicit": 0.0}
    for side, sign in (("chosen", 1.0), ("rejected", -1.0)):
        rows, heads = today.encode(
            tokenizer, [row["prompt"] for row in pairs], [{"response": row[side], "finished": True} for row in pairs]
        )
        margins["explicit"] += sign * np.array(today.scores(reward, tokenizer, rows))
        ratio = np.array(today.logprobs(dpo, tokenizer, rows, heads))
        margins["implicit"] += sign * beta * (ratio - today.logprobs(sft, tokenizer, rows, heads))
    agreement = float(np.mean(np.sign(margins["explicit"]) == np.sign(margins["implicit"])))

    best = json.loads((folder / "best_of_n.json").read_text())["arms"] if plan["best_of_n"] else {}
    golds = {label: one["gold"].reshape(len(test), repeats) for label, one in table.items()}
    golds |= {label: np.array(one["gold"]) for label, one in best.items()}
    base, rng = golds.pop("sft"), np.random.default_rng(plan["seed"])
    rates = {}
    for label, mine in golds.items():
        wins = (mine[:, :, None] > base[:, None, :]) + 0.5 * (mine[:, :, None] == base[:, None, :])
        by_prompt = wins.mean((1, 2))
        boot = by_prompt[rng.integers(len(by_prompt), size=(1000, len(by_prompt)))].mean(1)
        rates[label] = [by_prompt.mean(), *np.quantile(boot, [0.025, 0.975])]
    means = {label: {key: float(value.mean()) for key, value in one.items()} for label, one in table.items()}
    today.write_report(
        folder, name, imported_s, **counts, held_out_pairs=len(pairs), agreement=agreement, means=means, curves=curves,
        win_rates={label: [float(value) for value in row] for label, row in rates.items()},
        gold={label: float(mine.mean()) for label, mine in golds.items()},
    )  # fmt: skip


def checkpoints(folder: Path, label: str) -> list[Path]:
    """Folders of the checkpoints that a trainer kept, by step; of the SFT the final model alone."""
    if label == "sft":
        return [folder / "sft"]
    kept = [path for path in (folder / f"{label}-trainer").iterdir() if path.name.startswith(("checkpoint-", "step-"))]
    return sorted(kept, key=lambda path: int(path.name.split("-")[1]))


if __name__ == "__main__":
    main()
