"""Today, step 3: a reward model with TRL's RewardTrainer."""

from __future__ import annotations

import today


def main() -> None:
    """Trains, looks at the validation pairs, saves."""
    from datasets import load_dataset
    from transformers import AutoModelForSequenceClassification, AutoTokenizer
    from trl import RewardConfig, RewardTrainer

    plan, folder, name = today.read_plan()
    imported_s = today.since_start()
    block = plan["reward"]
    files = {split: str(folder / f"pairs-{split}.jsonl") for split in ("train", "validation")}
    pairs = load_dataset("json", data_files=files)
    tokenizer = AutoTokenizer.from_pretrained(folder / "sft")
    model = AutoModelForSequenceClassification.from_pretrained(folder / "sft", num_labels=1, dtype="float32")
    model.config.pad_token_id = tokenizer.pad_token_id
    trainer = RewardTrainer(
        model=model,
        args=RewardConfig(**today.training_arguments(block, folder / "reward-trainer"), max_length=plan["context"]),
        train_dataset=pairs["train"],
        eval_dataset=pairs["validation"],
        processing_class=tokenizer,
    )
    trainer.train()
    accuracy = trainer.evaluate()["eval_accuracy"]
    trainer.save_model(str(folder / "reward"))
    done = {"steps": trainer.state.global_step, "rows_per_step": block["batch_size"], "accuracy": accuracy}
    today.write_report(folder, name, imported_s, **done)


if __name__ == "__main__":
    main()
