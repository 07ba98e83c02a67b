"""What TRL 1.12's PPOTrainer computes from fixed rollouts: writes tests/golden/ppo_trl_1_12.json.

    pip install --no-deps --target DIR trl==1.12.0
    python benchmarks/golden_ppo.py --trl DIR [--out FILE]

TRL's formulas stand inline in `PPOTrainer.train`. So `train` itself runs, in float64, with sampling, forward passes and
reward model replaced by tables; when it calls `accelerator.backward`, the local variables of its frame are read. No
formula is typed anew here. `golden_ppo_facts` adds what shows only with real models and optimizers.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import sys
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import numpy as np

if __package__ in (None, ""):  # started as a file
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.ppo_trl import Settings, load_trl, make_trainer

ROWS, LENGTH, VOCABULARY, PAD, EOS = 6, 5, 5, 0, 1
MIXED = (5, 3, 1, 5, 4, 2)  # tokens that count, EOS included; the first row fills the length without EOS
FULL = (5,) * ROWS
TABLES = ("old_logits", "ref_logits", "new_logits", "old_values", "new_values", "scores")
# What is read from train's frame. (B, R): everything but the scalars at the end.
LOCALS = (
    "logprobs", "ref_logprobs", "padding_mask", "padding_mask_p1", "kl", "rewards", "returns", "advantages", "values",
    "pg_loss", "vf_loss", "vf_clipfrac",
)  # fmt: skip
LEAVES = ("new_logits", "new_values")  # whose gradients are read
CASES: Mapping[str, Mapping[str, Any]] = {
    "mixed": {},
    "mixed_lam1": {"lam": 1.0},
    "mixed_k3": {"kl_estimator": "k3"},
    "mixed_whitened": {"whiten_rewards": True},
    "full": {"lengths": FULL},
    "full_gamma": {"lengths": FULL, "gamma": 0.9},
}


def rollouts(lengths: tuple[int, ...], seed: int = 0) -> dict[str, Any]:
    """Seeded tables: ids (B, R), logits (B, R, V) before the temperature, values (B, R), scores (B,).

    The rollout's and the new logits differ enough for both clips to act.
    """
    rng = np.random.default_rng(seed)
    ids = rng.integers(2, VOCABULARY, size=(ROWS, LENGTH))
    for row, length in enumerate(lengths):
        if row > 0:
            ids[row, length - 1] = EOS
        ids[row, length:] = PAD
    old = rng.normal(0, 1, (ROWS, LENGTH, VOCABULARY))
    values = rng.normal(0, 0.5, (ROWS, LENGTH))
    tables = {
        "old_logits": old,
        "ref_logits": old + rng.normal(0, 0.5, old.shape),
        "new_logits": old + rng.normal(0, 0.3, old.shape),
        "old_values": values,
        "new_values": values + rng.normal(0, 0.3, values.shape),
        "scores": rng.normal(0, 1, ROWS),
    }
    return {"ids": ids.tolist()} | {name: np.round(table, 5).tolist() for name, table in tables.items()}


def settings(trl: Path, folder: Path) -> Settings:
    """Settings of a run over `ROWS` prompts with a tiny model in `folder`; a prompt's first id names its row."""
    (folder / "prompts.json").write_text(json.dumps([[30 + row, 20] for row in range(ROWS)]))
    return Settings(
        trl=trl, model=folder / "model", prompts=folder / "prompts.json", batch=ROWS, response=LENGTH, epochs=1,
        minibatches=1, updates=1, learning_rate=1e-3, kl_coef=0.05, temperature=0.7, stop_id=EOS,
    )  # fmt: skip


def make_model(folder: Path) -> None:
    """A tiny untrained Llama with the helpdesk world's tokenizer (pad 0, eos 1)."""
    from workbench.models import new_small_llama, save_model
    from workbench.tokens import load_tokenizer
    from workbench.worlds import helpdesk

    helpdesk.build_tokenizer(folder / "tokenizer")
    tokenizer = load_tokenizer(folder / "tokenizer")
    size = {"hidden_size": 16, "num_layers": 1, "num_heads": 2, "intermediate_size": 24, "initializer_range": 0.4}
    model = new_small_llama(size, vocab_size=len(tokenizer), special={"pad": PAD, "eos": EOS}, context=64, seed=0)
    save_model(model, tokenizer, folder / "model")


@contextlib.contextmanager
def tables_for_models(module: Any, trainer: Any, tables: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """Replaces sampling, forward passes and reward model by the tables; rows are told by the prompt's first id.

    Yields the tables as tensors; `LEAVES` collect gradients.
    """
    import torch

    t = {name: torch.tensor(tables[name], dtype=torch.float64, requires_grad=name in LEAVES) for name in TABLES}
    ids = torch.tensor(tables["ids"])
    context, temperature = 2, trainer.args.temperature + 1e-7

    def rows(query_responses: Any) -> Any:
        return query_responses[:, 0] - 30

    def whole(table: Any) -> Any:
        """(B, context + R, ...): a table of what is read one position before each response token."""
        before = torch.zeros(len(table), context - 1, *table.shape[2:], dtype=table.dtype)
        return torch.cat([before, table, before[:, :1]], 1)

    def batch_generation(_model: Any, queries: Any, *_: Any) -> Any:
        at = rows(queries)
        return torch.cat([queries, ids[at]], 1), t["old_logits"][at] / temperature  # generate() gives tempered scores

    def forward(model: Any, query_responses: Any, _pad: int) -> Any:
        at = rows(query_responses)
        if model is trainer.ref_model:
            return SimpleNamespace(logits=whole(t["ref_logits"][at]))
        return SimpleNamespace(logits=whole(t["new_logits"][at])), whole(t["new_values"][at]).unsqueeze(-1)

    def get_reward(model: Any, query_responses: Any, _pad: int, _context: int) -> Any:
        at = rows(query_responses)
        return whole(t["old_values"][at]).unsqueeze(-1), t["scores"][at], None

    replaced: dict[str, Any] = {"batch_generation": batch_generation, "forward": forward, "get_reward": get_reward}
    with mock.patch.multiple(module, **replaced):
        yield t


def run_on_tables(module: Any, trainer: Any, tables: Mapping[str, Any]) -> dict[str, Any]:
    """One run of `train`: its local variables at the last backward pass, rows in the tables' order, and its metrics."""
    import torch

    found: dict[str, Any] = {}

    def backward(loss: Any) -> None:
        frame = sys._getframe(1).f_locals  # of train
        back = (frame["queries"][:, 0] - 30).argsort()
        for name in (*LOCALS, "scores"):
            value = frame[name].detach().clone()
            found[name] = value[back] if value.dim() else value
        loss.backward()

    trainer.accelerator.backward = backward
    trainer.log = lambda metrics: found.update(metrics=metrics)
    torch.set_default_dtype(torch.float64)  # train's own tables of statistics too
    try:
        with tables_for_models(module, trainer, tables) as tensors, contextlib.redirect_stdout(sys.stderr):
            trainer.train()
    finally:
        torch.set_default_dtype(torch.float32)
    return found | {f"{name}_grad": tensors[name].grad for name in LEAVES}


def case(module: Any, base: Settings, given: Mapping[str, Any]) -> dict[str, Any]:
    """TRL's numbers from one set of rollouts, with the settings that they depend on."""
    changes = dict(given)
    tables = rollouts(changes.pop("lengths", MIXED))
    with tempfile.TemporaryDirectory() as folder:
        trainer = make_trainer(module, base, json.loads(base.prompts.read_text()), folder)
    for name, value in changes.items():  # after the checks of its constructor, which wants larger batches
        setattr(trainer.args, name, value)
    found = run_on_tables(module, trainer, tables)
    names = ("kl_coef", "kl_estimator", "temperature", "gamma", "lam", "cliprange", "cliprange_value", "vf_coef")
    logged = {name: value for name, value in found["metrics"].items() if "/" in name and math.isfinite(value)}
    return {
        "settings": {name: getattr(trainer.args, name) for name in names},
        "ids": tables["ids"],
        "trl": {name: rounded(found[name]) for name in (*LOCALS, *(f"{leaf}_grad" for leaf in LEAVES))},
        "metrics": {name: rounded(value) for name, value in logged.items()},
    }


def rounded(value: Any) -> Any:
    """Tensors and numbers as JSON, to 9 decimal digits; masks as 0 and 1."""
    if not hasattr(value, "tolist"):
        return round(float(value), 9)
    array = value.numpy()
    return array.astype(int).tolist() if array.dtype == bool else np.round(array.astype(float), 9).tolist()


def main() -> None:
    """Writes the file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trl", type=Path, required=True)
    default = Path(__file__).resolve().parents[1] / "tests" / "golden" / "ppo_trl_1_12.json"
    parser.add_argument("--out", type=Path, default=default)
    options = parser.parse_args()
    module = load_trl(options.trl)
    import torch

    from benchmarks.golden_ppo_facts import facts

    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make_model(folder)
        base = settings(options.trl, folder)
        written = {
            "about": "python benchmarks/golden_ppo.py --trl DIR",
            "trl": sys.modules["trl"].__version__,
            "rollouts": {name: value for name, value in rollouts(MIXED).items() if name != "ids"},
            "cases": {name: case(module, base, given) for name, given in CASES.items()},
            "facts": facts(module, base),
        }
    options.out.parent.mkdir(exist_ok=True)
    options.out.write_text(json.dumps(written, separators=(",", ":")).replace('"cases":', '\n"cases":') + "\n")
    print(f"{options.out}: {options.out.stat().st_size} bytes", file=sys.stderr)


if __name__ == "__main__":
    main()
