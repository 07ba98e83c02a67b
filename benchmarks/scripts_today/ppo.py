"""Today, step 5: PPO with the last PPOTrainer that TRL shipped (1.12, in a folder of its own), on the reward model.

The trainer is set up by `benchmarks/ppo_trl.py`, which documents every argument.
"""

from __future__ import annotations

import json
from pathlib import Path

import today


def main() -> None:
    """Tokenizes the prompts, trains, keeps checkpoints."""
    import torch
    from transformers import AutoTokenizer

    from benchmarks.ppo_trl import Settings, run

    plan, folder, name = today.read_plan()
    imported_s = today.since_start()  # of TRL's, which `run` imports, are in the work
    block = plan["ppo"]
    tokenizer = AutoTokenizer.from_pretrained(folder / "sft")
    texts = [row["prompt"] for row in today.read_rows(plan["prompts"]) if row["split"] == "train"]
    (folder / "ppo-prompts.json").write_text(json.dumps(tokenizer(texts)["input_ids"]))
    every, last = block["checkpoint_every_updates"], block["updates"]
    done = run(
        Settings(
            trl=Path(plan["trl112"]), model=folder / "sft", reward=folder / "reward",
            prompts=folder / "ppo-prompts.json",
            batch=block["batch_size"], response=plan["evaluation"]["max_response_tokens"], epochs=block["epochs"],
            minibatches=block["minibatches"], updates=last, learning_rate=block["learning_rate"],
            schedule=block["schedule"], kl_coef=block["kl_coef"], temperature=block["temperature"],
            adam_eps=block["adam_eps"], stop_id=tokenizer.eos_token_id, seed=plan["seed"],
            threads=torch.get_num_threads(), save=folder / f"{name}-trainer",
            save_at=tuple(range(every, last, every)),
        )
    )  # fmt: skip
    steps = last * block["epochs"] * block["minibatches"]
    today.write_report(
        folder, name, imported_s, updates=len(done["updates"]), episodes=last * block["batch_size"],
        optimizer_steps=steps, trl=done["versions"]["trl"],
    )  # fmt: skip


if __name__ == "__main__":
    main()
