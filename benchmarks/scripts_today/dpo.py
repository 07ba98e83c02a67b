"""Today, step 4, once for each beta: DPO with TRL's DPOTrainer, which tokenizes and passes the reference by itself."""

from __future__ import annotations

import today


def main() -> None:
    """Trains, keeping checkpoints, and saves."""
    from datasets import load_dataset
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from trl import DPOConfig, DPOTrainer

    plan, folder, name = today.read_plan()
    imported_s = today.since_start()
    block = plan["dpo"][name]
    pairs = load_dataset("json", data_files=str(folder / "pairs-train.jsonl"), split="train")
    arguments = today.training_arguments(block, folder / f"{name}-trainer", save_steps=block["save_steps"])
    trainer = DPOTrainer(
        model=AutoModelForCausalLM.from_pretrained(folder / "sft", dtype="float32"),
        # one pass of the reference before training, in large batches, costs less than one in every step
        args=DPOConfig(
            **arguments, beta=block["beta"], max_length=plan["context"], precompute_ref_log_probs=True,
            precompute_ref_batch_size=today.BATCH,
        ),
        train_dataset=pairs,
        processing_class=AutoTokenizer.from_pretrained(folder / "sft"),
    )  # fmt: skip
    trainer.train()
    trainer.save_model(str(folder / name))
    done = {"steps": trainer.state.global_step, "rows_per_step": block["batch_size"]}
    today.write_report(folder, name, imported_s, **done)


if __name__ == "__main__":
    main()
