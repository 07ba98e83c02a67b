"""Today, step 6: one pool of samples per test prompt; for each selector the winners of disjoint blocks of n."""

from __future__ import annotations

import today


def main() -> None:
    """Samples the pool, scores it by reward model, implicit reward and gold, picks."""
    import numpy as np
    from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

    from workbench.worlds.helpdesk_gold import gold

    plan, folder, name = today.read_plan()
    imported_s = today.since_start()
    evaluation, pool = plan["evaluation"], plan["pool"]
    tokenizer = AutoTokenizer.from_pretrained(folder / "sft")
    sft = AutoModelForCausalLM.from_pretrained(folder / "sft", dtype="float32").eval()
    test = [row["prompt"] for row in today.read_rows(plan["prompts"]) if row["split"] == "test"]
    prompts = [text for text in test[: evaluation["prompts"]] for _ in range(pool)]
    drawn = today.sample(sft, tokenizer, prompts, evaluation["max_response_tokens"], plan["seed"] + 1)
    rows, heads = today.encode(tokenizer, prompts, drawn)
    golds = np.array([gold(text, one["response"], one["finished"]) for text, one in zip(prompts, drawn, strict=True)])

    reward = AutoModelForSequenceClassification.from_pretrained(folder / "reward", num_labels=1, dtype="float32").eval()
    proxy = np.array(today.scores(reward, tokenizer, rows))
    selectors = {"reward": proxy}
    for label in plan["selectors"]:
        policy = AutoModelForCausalLM.from_pretrained(folder / label, dtype="float32").eval()
        ratio = np.array(today.logprobs(policy, tokenizer, rows, heads))
        selectors[label] = plan["dpo"][label]["beta"] * (ratio - today.logprobs(sft, tokenizer, rows, heads))

    blocks = min(evaluation["samples_per_prompt"], pool // max(plan["best_of_n"].values()))
    found = {}
    for arm, n in plan["best_of_n"].items():
        value = selectors[plan["best_of_n_reward"][arm]].reshape(-1, pool)[:, : blocks * n].reshape(-1, blocks, n)
        best = value.argmax(2)
        picked = (np.arange(blocks) * n + best + np.arange(len(best))[:, None] * pool).ravel()
        found[arm] = {"gold": golds[picked].reshape(-1, blocks).tolist(), "proxy": proxy[picked].mean()}
    today.write_report(
        folder, name, imported_s, samples=len(drawn), scored=(1 + len(selectors)) * len(drawn), arms=found
    )


if __name__ == "__main__":
    main()
