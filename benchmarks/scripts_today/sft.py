"""Today, step 1: supervised fine-tuning with TRL's SFTTrainer on prompts and completions."""

from __future__ import annotations

import today


def main() -> None:
    """Trains and saves."""
    from datasets import load_dataset
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from trl import SFTConfig, SFTTrainer

    plan, folder, name = today.read_plan()
    imported_s = today.since_start()
    block = plan["sft"]
    corpus = load_dataset("json", data_files=plan["corpus"], split="train").rename_column("response", "completion")
    tokenizer = AutoTokenizer.from_pretrained(plan["base_model"])
    trainer = SFTTrainer(
        model=AutoModelForCausalLM.from_pretrained(plan["base_model"], dtype="float32"),
        args=SFTConfig(**today.training_arguments(block, folder / "sft-trainer"), max_length=plan["context"]),
        train_dataset=corpus,
        processing_class=tokenizer,
    )
    trainer.train()
    trainer.save_model(str(folder / "sft"))
    done = {"steps": trainer.state.global_step, "rows_per_step": block["batch_size"]}
    today.write_report(folder, name, imported_s, **done)


if __name__ == "__main__":
    main()
