"""TRL 1.12's PPOTrainer, the last one that TRL shipped, as a process of its own. Prints one JSON object.

    pip install --no-deps --target DIR trl==1.12.0
    python benchmarks/ppo_trl.py --trl DIR --model DIR (--reward DIR | --reward-seed S) --prompts FILE.json
        [--batch 64] [--response 48] [--epochs 4] [--minibatches 4] [--updates N] [--learning-rate R] [--kl-coef C]
        [--temperature T] [--schedule constant|linear] [--stop-ids ID] [--adam-eps E] [--seed S] [--threads T]
        [--save FOLDER [--save-at N ...]] [--json FILE]

The prompts are a JSON list of lists of ids. One update is one batch of `--batch` episodes. Each update gives wall and
CPU seconds, split into

    generate   `batch_generation`
    score      the policy's log-probabilities of the samples, the reference's, the critic's and the reward model's pass
    train      all epochs and minibatches
    rest       batches, rewards and advantages, metrics, garbage collection

and what TRL logs, with the episodes so far, the mean score before any EOS rule and the tokens generated.

Set as TRL documents for what ours does: fp32, no gradient checkpointing, no sample generation while training, no
reports; gamma 1, lambda .95, clips .2, value coefficient .1, k1 in the reward, rewards not whitened, no EOS penalty.
What cannot be set: gradients are not clipped (`max_grad_norm` is not read), policy and critic share one optimizer and
one learning rate, the value function has no warm-up, there is one stop id, the last batch of a pass over the prompts
is dropped if it is not full. `gradient_accumulation_steps` is 1 and the device batch is the whole batch: with more,
TRL 1.12 accumulates over minibatches too, so that `num_mini_batches` buys no optimizer steps (see docs/ppo.md).

On transformers 5.23 TRL 1.12's PPO needs no patch. Two things are set from outside: a collator that pads on the left
(its own leaves that to the tokenizer), and `Trainer.log` is replaced by a recorder, so that no callback prints.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import importlib.metadata
import json
import os
import resource
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

if __package__ in (None, ""):  # started as a file
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.ppo_trl_watch import Clock, Seen, watched


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
    """Everything one run needs; the command line's options, and what other benchmarks pass.

    Args:
        trl: Folder into which TRL 1.12 was installed.
        model: Folder of the SFT: policy, and frozen reference.
        reward: Folder of the reward model (also where the critic starts), or None.
        reward_seed: Seed of a random head on the SFT's trunk, drawn from N(0, 1/sqrt(d + 1)), where `reward` is None.
        prompts: JSON file with a list of lists of ids.
        stop_id: Ends a response; None: every response has `response` tokens.
        save_at: Updates after which the policy is written to `save`/step-N; the last one always is.
    """

    trl: Path
    model: Path
    prompts: Path
    reward: Path | None = None
    reward_seed: int = 0
    batch: int = 64
    response: int = 48
    epochs: int = 4
    minibatches: int = 4
    updates: int = 4
    learning_rate: float = 2e-4
    schedule: str = "constant"
    kl_coef: float = 0.1
    temperature: float = 1.0
    adam_eps: float = 1e-5
    stop_id: int | None = None
    seed: int = 0
    threads: int = 1
    device: str = "cpu"
    save: Path | None = None
    save_at: tuple[int, ...] = ()


@dataclasses.dataclass(kw_only=True)
class Update:
    """One update: seconds by phase, wall and CPU, and what came of it."""

    update: int
    episodes: int
    wall_s: dict[str, float]
    cpu_s: dict[str, float]
    score: float
    seq_kl: float
    response_tokens: int
    logged: dict[str, float]


def load_trl(folder: Path) -> Any:
    """TRL 1.12's ppo_trainer module from `folder`, before anything else imports another TRL.

    Raises:
        SystemExit: `folder` holds no TRL 1.12.
    """
    if not (Path(folder) / "trl").is_dir():
        sys.exit(f"{folder}: no trl there; pip install --no-deps --target {folder} trl==1.12.0")
    if "trl" in sys.modules:
        raise RuntimeError("another trl is loaded already; run this in a process of its own")
    sys.path.insert(0, str(folder))
    os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")
    import trl

    if trl.__version__.split(".")[:2] != ["1", "12"]:
        sys.exit(f"{folder}: expected TRL 1.12, found {trl.__version__}")
    from trl.experimental.ppo import ppo_trainer

    return ppo_trainer


def make_trainer(module: Any, settings: Settings, prompts: list[list[int]], folder: str, **changes: Any) -> Any:
    """A PPOTrainer with four models of its own, as TRL's example script makes them; `changes` go into its config."""
    import torch
    from datasets import Dataset
    from trl.experimental.ppo import PPOConfig

    from workbench.models import Placement, load_policy, load_reward_model, new_reward_model
    from workbench.tokens import load_tokenizer

    tokenizer = load_tokenizer(settings.model)
    pad = int(tokenizer.pad_token_id)
    place = Placement(device=settings.device)

    def reward_model() -> Any:
        if settings.reward is not None:
            return load_reward_model(settings.reward, place, trainable=True)
        return new_reward_model(settings.model, place, settings.reward_seed, pad_id=pad)

    policy = load_policy(settings.model, place, trainable=True)
    policy.generation_config.pad_token_id = pad

    def collate(examples: list[dict[str, list[int]]]) -> dict[str, Any]:
        width = max(len(one["input_ids"]) for one in examples)
        return {"input_ids": torch.tensor([[pad] * (width - len(x["input_ids"])) + x["input_ids"] for x in examples])}

    options: dict[str, Any] = {
        "output_dir": folder,
        "seed": settings.seed,
        "per_device_train_batch_size": settings.batch,
        "local_rollout_forward_batch_size": settings.batch,
        "gradient_accumulation_steps": 1,
        "num_mini_batches": settings.minibatches,
        "num_ppo_epochs": settings.epochs,
        "total_episodes": settings.updates * settings.batch,
        "response_length": settings.response,
        "learning_rate": settings.learning_rate,
        "lr_scheduler_type": settings.schedule,
        "adam_epsilon": settings.adam_eps,
        "kl_coef": settings.kl_coef,
        "kl_estimator": "k1",
        "temperature": settings.temperature,
        "stop_token_id": settings.stop_id,
        "missing_eos_penalty": None,
        "whiten_rewards": False,
        "gamma": 1.0, "lam": 0.95, "cliprange": 0.2, "cliprange_value": 0.2, "vf_coef": 0.1,
        "use_cpu": settings.device == "cpu",
        "bf16": False, "fp16": False, "gradient_checkpointing": False,
        "num_sample_generations": 0, "eval_strategy": "no", "save_strategy": "no",
        "report_to": [], "disable_tqdm": True,
    }  # fmt: skip
    return module.PPOTrainer(
        args=PPOConfig(**options | changes),
        processing_class=tokenizer,
        model=policy,
        ref_model=load_policy(settings.model, place),
        reward_model=reward_model().requires_grad_(False),
        value_model=reward_model(),
        train_dataset=Dataset.from_dict({"input_ids": prompts}),
        data_collator=collate,
    )


def run(settings: Settings, on_update: Callable[[Update, Any], None] | None = None) -> dict[str, Any]:
    """Trains and measures.

    Args:
        settings: What to run.
        on_update: Called after each update, outside the clocks, with its record and TRL's trainer.

    Returns:
        `updates` (records), settings, versions, peak memory and the folder of the final policy.
    """
    import torch
    import transformers

    torch.set_num_threads(settings.threads)
    module = load_trl(settings.trl)
    prompts = json.loads(settings.prompts.read_text())
    prompts *= -(-settings.batch // len(prompts))  # of fewer than a batch TRL makes none, and waits for it forever
    cuda = settings.device != "cpu"
    before = resident_peak()
    with tempfile.TemporaryDirectory() as folder:
        trainer = make_trainer(module, settings, prompts, folder)
        clock = Clock(torch.cuda.synchronize if cuda else lambda: None)
        records: list[Update] = []

        def record(seen: Seen) -> None:
            number = len(records) + 1
            records.append(
                Update(
                    update=number,
                    episodes=number * settings.batch,
                    wall_s=dict(clock.wall),
                    cpu_s=dict(clock.cpu),
                    score=seen.score,
                    seq_kl=seen.logged["objective/kl"],
                    response_tokens=seen.tokens,
                    logged=seen.logged,
                )
            )
            save(settings, trainer, number)
            if on_update is not None:
                on_update(records[-1], trainer)

        transformers.set_seed(settings.seed)  # its shuffles are numpy's
        with contextlib.redirect_stdout(sys.stderr), watched(module, trainer, clock, record):
            trainer.train()
    return {
        "updates": [dataclasses.asdict(one) for one in records],
        "settings": {name: plain(value) for name, value in dataclasses.asdict(settings).items()},
        "versions": {name: importlib.metadata.version(name) for name in ("torch", "transformers", "accelerate")}
        | {"trl": sys.modules["trl"].__version__},
        "imports_memory_bytes": before,
        "peak_memory_bytes": resident_peak(),
        "device_peak_bytes": torch.cuda.max_memory_allocated() if cuda else None,
        "policy": None if settings.save is None else str(settings.save / f"step-{len(records):06d}"),
    }


def save(settings: Settings, trainer: Any, update: int) -> None:
    """Writes the policy where that is asked for."""
    if settings.save is not None and (update in settings.save_at or update == settings.updates):
        folder = settings.save / f"step-{update:06d}"
        trainer.accelerator.unwrap_model(trainer.model).policy.save_pretrained(folder)
        trainer.processing_class.save_pretrained(folder)


def resident_peak() -> int:
    """Most bytes that this process ever held in memory."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def plain(value: Any) -> Any:
    """Paths as text, for JSON."""
    return str(value) if isinstance(value, Path) else value


def parse(arguments: list[str] | None = None) -> tuple[Settings, Path | None]:
    """The settings and the file that receives the JSON, from the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    default = {field.name: field.default for field in dataclasses.fields(Settings)}
    for name in ("trl", "model", "prompts"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    reward = parser.add_mutually_exclusive_group()
    reward.add_argument("--reward", type=Path)
    reward.add_argument("--reward-seed", type=int, default=default["reward_seed"])
    for name in ("batch", "response", "epochs", "minibatches", "updates", "seed", "threads"):
        parser.add_argument(f"--{name}", type=int, default=default[name])
    for name in ("learning_rate", "kl_coef", "temperature", "adam_eps"):
        parser.add_argument(f"--{name.replace('_', '-')}", type=float, default=default[name])
    parser.add_argument("--schedule", choices=["constant", "linear", "cosine"], default=default["schedule"])
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--stop-ids", type=int, nargs="*", default=[], help="TRL 1.12 takes one")
    parser.add_argument("--save", type=Path)
    parser.add_argument("--save-at", type=int, nargs="*", default=[])
    parser.add_argument("--json", type=Path, help="write there instead of to stdout")
    given = vars(parser.parse_args(arguments))
    target, stops = given.pop("json"), given.pop("stop_ids")
    if len(stops) > 1:
        parser.error(f"--stop-ids {stops}: TRL 1.12's stop_token_id is one id")
    if not (given["trl"] / "trl").is_dir():
        parser.error(f"--trl {given['trl']}: no trl there; pip install --no-deps --target DIR trl==1.12.0")
    return Settings(**given | {"stop_id": stops[0] if stops else None, "save_at": tuple(given["save_at"])}), target


def main() -> None:
    """Runs TRL and prints the figures."""
    settings, target = parse()
    os.environ.setdefault("OMP_NUM_THREADS", str(settings.threads))
    text = json.dumps(run(settings), indent=1)
    if target is None:
        print(text)
    else:
        target.write_text(text)


if __name__ == "__main__":
    main()
