"""Samples for the tests of the HTML pages: a few prompts, plain or hostile."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

ARMS = ("sft", "ppo", "dpo", "best_of_n")
HOSTILE = (
    "<script>document.title='pwned'</script>",
    "</script><script>document.title='pwned'</script>",
    "<img src=x onerror=\"document.title='pwned'\">",
    "\x1b]0;pwned\x07\x1b[31mred\x1b[0m",
    "abc\u202egnp.exe\u2066x\u2069 \u200f end",
    "<!--<script>--> ]]> &lt;b&gt; \u2028 \ud800 \x00 \x9b31m",
    "word" * 25_000,
    "[click](javascript:alert(1)) ![x](http://example.org/x.png) `a` | b | **c**",
)


def row(prompt: int, arm: str, sample: int, response: str, **figures: Any) -> dict[str, Any]:
    """One row of samples.jsonl.gz."""
    fields = {"gold_reward": 1.0, "proxy_reward": 1.0, "implicit_reward": 0.0, "seq_kl": 0.5} | figures
    wins = {} if arm == "sft" else {"gold": figures.pop("win", 0.5)}
    fields.pop("win", None)
    return {
        "seed": 0, "prompt_id": f"p{prompt}", "prompt": f"prompt number {prompt}", "arm": arm, "sample_index": sample,
        "response": response, **fields, "response_tokens": 7, "finish_reason": "stop", "wins": wins,
    }  # fmt: skip


def samples(prompts: int = 6, texts: tuple[str, ...] = ("hello there", "hello here")) -> list[dict[str, Any]]:
    """Two samples a prompt and arm; figures differ by prompt and arm."""
    return [
        row(p, arm, i, texts[(p + a + i) % len(texts)], gold_reward=float((p * 3 + a + i) % 5),
            proxy_reward=float((p + 2 * a + i) % 4), implicit_reward=float((p * a - i) % 3))
        for p in range(prompts) for a, arm in enumerate(ARMS) for i in range(2)
    ]  # fmt: skip


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    """samples.jsonl.gz of these rows."""
    with gzip.open(path, "wt", encoding="utf-8") as out:
        out.writelines(json.dumps(one) + "\n" for one in rows)
    return path
