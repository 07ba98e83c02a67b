"""Is a preallocated key-value cache faster than one that grows by copying? The sampler of the stages, nothing else.

    python benchmarks/sampling.py [--size 10m | --model DIR] [--rows 256] [--batch 64] [--prompt 64] [--response 128]
        [--caches dynamic static] [--device cpu|cuda] [--dtype float32|bfloat16] [--threads 1] [--repeats 5] [--json]

Random prompts of `--prompt` tokens at most, responses of `--response` tokens at most; `--stops` ids end one, so that
rows leave the batch as they do in a stage. The caches take turns, so that a machine that slows down slows all of them;
before the first turn each has drawn two tokens (and compiled what it compiles). Figures are medians and ranges over the
turns: wall and CPU seconds, tokens a second, peak memory on a GPU; `same_ids` says whether a cache drew what the first
one did, which it does in float32.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from pathlib import Path
from typing import Any

if __package__ in (None, ""):  # started as a file
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

CACHES = ("dynamic", "static", "compiled")
SIZES: dict[str, dict[str, int]] = {  # layers, width, heads, key-value heads, feed-forward width, vocabulary
    "0.3m": {"layers": 4, "hidden": 64, "heads": 4, "key_value": 4, "forward": 168, "vocabulary": 512},
    "10m": {"layers": 6, "hidden": 288, "heads": 6, "key_value": 2, "forward": 768, "vocabulary": 8192},
    "0.5b": {"layers": 24, "hidden": 896, "heads": 14, "key_value": 2, "forward": 4864, "vocabulary": 151936},
}


def new_model(size: str, positions: int) -> Any:
    """A random Qwen2 of a size; the last one is that of Qwen2.5-0.5B."""
    import torch
    from transformers import Qwen2Config, Qwen2ForCausalLM

    one = SIZES[size]
    config = Qwen2Config(
        vocab_size=one["vocabulary"], hidden_size=one["hidden"], num_hidden_layers=one["layers"],
        num_attention_heads=one["heads"], num_key_value_heads=one["key_value"], intermediate_size=one["forward"],
        max_position_embeddings=positions, tie_word_embeddings=True, initializer_range=0.02,
    )  # fmt: skip
    torch.manual_seed(0)
    return Qwen2ForCausalLM(config)


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Every cache in turn; seconds, tokens, bytes."""
    import numpy as np
    import torch

    from workbench.models import DTYPES, Placement, load_policy
    from workbench.sampling import Decoding, sample

    torch.set_num_threads(options.threads)
    if options.model is not None:
        model = load_policy(options.model, Placement(device=options.device, dtype=options.dtype))
    else:
        model = new_model(options.size, options.prompt + options.response)
        model = model.to(options.device, DTYPES[options.dtype]).eval()
    rng = np.random.default_rng(0)
    vocabulary = model.config.vocab_size
    prompts = [
        rng.integers(2, vocabulary, size=rng.integers(options.prompt // 4, options.prompt + 1)).tolist()
        for _ in range(options.rows)
    ]
    stops = tuple(rng.choice(np.arange(2, vocabulary), size=options.stops, replace=False).tolist())
    found: dict[str, list[dict[str, float]]] = {name: [] for name in options.caches}
    ids: dict[str, Any] = {}
    for turn in range(-1, options.repeats):
        for name in options.caches:
            length = 2 if turn < 0 else options.response
            decoding = Decoding(max_response_tokens=length, stop_ids=stops)
            if options.device == "cuda":
                torch.cuda.reset_peak_memory_stats()
                torch.cuda.synchronize()
            wall_s, cpu_s = time.perf_counter(), time.process_time()
            drawn = sample(model, prompts, decoding, pad_id=0, seed=max(turn, 0), batch_size=options.batch, cache=name)
            wall_s, cpu_s = time.perf_counter() - wall_s, time.process_time() - cpu_s
            if turn < 0:
                continue
            peak = torch.cuda.max_memory_allocated() if options.device == "cuda" else 0
            tokens = sum(len(one.ids) for one in drawn)
            found[name].append({"wall_s": wall_s, "cpu_s": cpu_s, "tokens": tokens, "peak_bytes": peak})
            if turn == 0:
                ids[name] = [one.ids for one in drawn]
    return {name: _figures(rows) | {"same_ids": ids[name] == ids[options.caches[0]]} for name, rows in found.items()}


def _figures(rows: list[dict[str, float]]) -> dict[str, Any]:
    def spread(values: list[float]) -> dict[str, float]:
        return {"median": statistics.median(values), "low": min(values), "high": max(values), "n": len(values)}

    figures: dict[str, Any] = {
        "wall_s": spread([row["wall_s"] for row in rows]),
        "cpu_s": spread([row["cpu_s"] for row in rows]),
        "tokens_per_s": spread([row["tokens"] / row["wall_s"] for row in rows]),
        "tokens_per_cpu_s": spread([row["tokens"] / row["cpu_s"] for row in rows]),
    }
    peak = max(row["peak_bytes"] for row in rows)
    return figures | ({"peak_bytes": peak} if peak else {})


def table(found: dict[str, Any]) -> str:
    """The figures for people."""
    lines = ["| cache | tokens a CPU second | tokens a second | CPU s | same ids |", "|---|---|---|---|---|"]
    for name, one in found["caches"].items():
        cells = [
            f"{one[column]['median']:,.{digits}f} [{one[column]['low']:,.{digits}f}, {one[column]['high']:,.{digits}f}]"
            for column, digits in (("tokens_per_cpu_s", 0), ("tokens_per_s", 0), ("cpu_s", 2))
        ]
        lines.append(f"| {name} | {' | '.join(cells)} | {'yes' if one['same_ids'] else 'no'} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, help="a model's folder; a random one by default")
    parser.add_argument("--size", choices=sorted(SIZES), default="10m")
    parser.add_argument("--rows", type=int, default=256, help="responses")
    parser.add_argument("--batch", type=int, default=64, help="responses at once")
    parser.add_argument("--prompt", type=int, default=64, help="longest prompt, in tokens")
    parser.add_argument("--response", type=int, default=128, help="longest response, in tokens")
    parser.add_argument("--stops", type=int, default=64, help="ids that end a response")
    parser.add_argument("--caches", nargs="+", choices=CACHES, default=["dynamic", "static"])
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--json", action="store_true", help="print one object")
    options = parser.parse_args()
    setting = {name: str(value) if isinstance(value, Path) else value for name, value in vars(options).items()}
    found = {"setting": setting, "caches": measure(options)}
    print(json.dumps(found, indent=1) if options.json else table(found))


if __name__ == "__main__":
    main()
