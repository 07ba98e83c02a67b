"""A made file of preference rows with every fault that can be dropped."""

from __future__ import annotations

import hashlib
import json
import random
from pathlib import Path
from typing import Any

WORDS = [
    "please", "could", "you", "tell", "me", "where", "my", "parcel", "is", "today", "because", "it", "has", "not",
    "come", "and", "nobody", "answers", "the", "phone",
]  # fmt: skip


def _text(rng: random.Random, longest: int) -> str:
    return " ".join(rng.choice(WORDS) for _ in range(rng.randint(1, longest)))


def write_messy(path: Path, count: int = 400) -> Path:
    """Writes about `count` rows; equal calls write equal files."""
    rng = random.Random(7)
    good: list[dict[str, Any]] = []
    lines: list[bytes] = []
    broken = [
        b'{"prompt": "a", "chosen" "b"}', b"[1]", b"",
        b'{"prompt": "a", "prompt": "b", "chosen": "c", "rejected": "d"}',
        b'{"prompt": "a\\u0000b", "chosen": "c", "rejected": "d"}', b'{"prompt": "a\x00"}', b'{"prompt": "caf\xe9"}',
        b'{"prompt": "a", "chosen": "\\ud800", "rejected": "b"}', b'{"prompt": "a", "chosen": "b", "reject": "c"}',
        b'{"prompt": "a", "chosen": 3, "rejected": "c"}', b'{"prompt": "a", "chosen": " ", "rejected": "c"}',
        b'{"prompt": "a", "chosen": "b", "rejected": "c", "annotations": [1]}',
        b'{"prompt": "a", "chosen": "b", "rejected": "c", "target_margin": "x"}',
        b'{"prompt": "a", "chosen": "b", "rejected": "c", "split": "dev"}', b'{"chosen": "b", "rejected": "c"}',
    ]  # fmt: skip
    for number in range(count):
        kind = rng.random()
        if kind < 0.08:
            lines.append(rng.choice(broken))
        elif kind < 0.12 and good:
            lines.append(json.dumps(rng.choice(good)).encode())
        elif kind < 0.17 and good:
            row = rng.choice(good)
            lines.append(json.dumps(row | {"chosen": row["rejected"], "rejected": row["chosen"]}).encode())
        elif kind < 0.19:
            lines.append(json.dumps({"prompt": f"same {number}", "chosen": "equal", "rejected": "equal"}).encode())
        else:
            prompt = rng.choice(good)["prompt"].upper() if good and kind < 0.4 else f"{_text(rng, 8)} {number} \u00e9?"
            row = {"prompt": prompt, "chosen": _text(rng, 30), "rejected": _text(rng, 30) + f" {number}"}
            if kind > 0.8:
                row["annotations"] = [{"annotator": one, "prefers_first": rng.random() < 0.7} for one in ("ann", "bo")]
            if kind > 0.9:
                row["target_margin"] = round(rng.random(), 3)
            good.append(row)
            lines.append(json.dumps(row, ensure_ascii=kind < 0.7).encode())
    path.write_bytes(b"".join(line + b"\n" for line in lines))
    return path


def digests(folder: Path) -> dict[str, str]:
    """sha256, 16 digits, of every file of a folder."""
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest()[:16] for path in sorted(folder.iterdir())}
