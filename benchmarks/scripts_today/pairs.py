"""Today, step 2: pairs. Two samples of the SFT model per prompt, labeled by the world's annotators, who see gold."""

from __future__ import annotations

from typing import Any

import today


def main() -> None:
    """Samples, labels, writes one file per split."""
    import numpy as np
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from workbench.data.annotators import annotators_from_config, label_pairs
    from workbench.worlds.helpdesk_gold import gold

    plan, folder, name = today.read_plan()
    imported_s = today.since_start()
    tokenizer = AutoTokenizer.from_pretrained(folder / "sft")
    model = AutoModelForCausalLM.from_pretrained(folder / "sft", dtype="float32").eval()
    prompts = [row for row in today.read_rows(plan["prompts"]) if row["split"] in plan["pairs"]]
    prompts = [row for split, count in plan["pairs"].items() for row in _of(prompts, split)[:count]]
    texts = [row["prompt"] for row in prompts for _ in range(2)]
    drawn = today.sample(model, tokenizer, texts, plan["evaluation"]["max_response_tokens"], plan["seed"])
    golds = np.array([gold(text, one["response"], one["finished"]) for text, one in zip(texts, drawn, strict=True)])
    words = np.array([sum(any(c.isalnum() for c in word) for word in one["response"].split()) for one in drawn], float)
    labels = label_pairs(
        golds[::2], golds[1::2], words[::2], words[1::2], annotators_from_config(plan["annotators"]),
        plan["labels_per_pair"], np.random.default_rng(plan["seed"]),
    )  # fmt: skip
    rows: dict[str, list[dict[str, Any]]] = {split: [] for split in plan["pairs"]}
    for i, prompt in enumerate(prompts):
        first, second = drawn[2 * i]["response"], drawn[2 * i + 1]["response"]
        chosen, rejected = (first, second) if labels.a_chosen[i] else (second, first)
        if first and second and first != second:
            rows[prompt["split"]].append({"prompt": prompt["prompt"], "chosen": chosen, "rejected": rejected})
    for split, found in rows.items():
        today.write_rows(folder / f"pairs-{split}.jsonl", found)
    counts = {split: len(found) for split, found in rows.items()}
    today.write_report(folder, name, imported_s, samples=len(drawn), pairs=counts)


def _of(rows: list[dict[str, Any]], split: str) -> list[dict[str, Any]]:
    return [row for row in rows if row["split"] == split]


if __name__ == "__main__":
    main()
