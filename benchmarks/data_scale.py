"""How fast and in how much memory preference pairs are read, checked, split, tokenised and packed.

    python benchmarks/data_scale.py --rows 1000000 [--json] [--keep FOLDER] [--tokenizer FOLDER | --words]

Makes synthetic rows (about 1,000 characters a pair, words drawn as unevenly as in a language), trains a byte-level BPE
tokenizer on some of them, and measures in processes of their own, one after the other:

prepare     the stages `pairs` (read, check, split, write) and `packed_pairs` (tokenise, filter, write), as a comparison
            runs them, and opening what they wrote
halves      the tokenizer's own calls, in batches of the same size, and nothing else: `texts_once` on prompt, chosen and
            rejected; `joint` on the prompt, and the prompt with each response, which packing encodes of tokenizers that
            it may not cut (`workbench/data/cuts.py`). One half runs before `prepare`, one after it

Peak memory is the largest resident set of the process, imports included.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
SYLLABLES = ("ka", "to", "mi", "ra", "ne", "su", "lo", "vi", "da", "pe", "ro", "ti", "sa", "stra", "ching", "ment")
PROMPT_WORDS, RESPONSE_WORDS = (20, 80), (20, 100)
BATCH = 512


def vocabulary() -> list[str]:
    """20,000 made words."""
    rng = random.Random(0)
    return ["".join(rng.choices(SYLLABLES, k=rng.randint(1, 4))) for _ in range(20_000)]


def write_rows(path: Path, count: int) -> None:
    """Synthetic pairs: three rows in four have a prompt of their own, one in a thousand comes twice."""
    rng = random.Random(1)
    words = vocabulary()
    weights = [1 / (rank + 10) for rank in range(len(words))]
    # Texts are cut out of one long draw: drawing each word anew would take longer than what is measured.
    stream = rng.choices(words, weights, k=min(2_000_000, 1000 * count))

    def text(bounds: tuple[int, int]) -> str:
        length = rng.randint(*bounds)
        start = rng.randrange(len(stream) - length)
        return " ".join(stream[start : start + length])

    prompt, line = "", ""
    with path.open("w", encoding="utf-8") as file:
        for number in range(count):
            if number == 0 or rng.random() < 0.75:
                prompt = f"\n\nHuman: {text(PROMPT_WORDS)} {number}?\n\nAssistant:"
            if number == 0 or rng.random() >= 0.001:
                row = {"prompt": prompt, "chosen": " " + text(RESPONSE_WORDS), "rejected": " " + text(RESPONSE_WORDS)}
                line = json.dumps(row) + "\n"
            file.write(line)


def train_tokenizer(rows: Path, folder: Path, *, words: bool) -> None:
    """From the first rows: a byte-level BPE of 8,000 tokens, as GPT-2's is, or one token for each word."""
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers
    from tokenizers.decoders import ByteLevel

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = ByteLevel()
    special = ["<pad>", "<eos>", "<unk>"]
    trainer: trainers.Trainer = trainers.BpeTrainer(vocab_size=8000, special_tokens=special, show_progress=False)
    if words:
        tokenizer = Tokenizer(models.WordLevel(unk_token="<unk>"))
        tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
        trainer = trainers.WordLevelTrainer(vocab_size=8000, special_tokens=special, show_progress=False)
    with rows.open(encoding="utf-8") as file:
        texts = [json.loads(line)["chosen"] for _, line in zip(range(5000), file, strict=False)]
    tokenizer.train_from_iterator(texts, trainer)
    folder.mkdir()
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "<eos>", "pad_token": "<pad>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))


class Log:
    """What the stages need of a StageLog."""

    seed = 0

    def say(self, message: str) -> None:
        """Says it on stderr."""
        print(message, file=sys.stderr)


class Clock:
    """Seconds of what runs inside `with`, added up: wall, and CPU over all threads."""

    def __init__(self) -> None:
        self.wall_s, self.cpu_s = 0.0, 0.0

    def __enter__(self) -> Clock:
        self._start = time.monotonic(), time.process_time()
        return self

    def __exit__(self, *error: object) -> None:
        self.wall_s += time.monotonic() - self._start[0]
        self.cpu_s += time.process_time() - self._start[1]


def peak_bytes() -> int:
    """Largest resident set of this process so far."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def prepare(home: Path, tokenizer: Path) -> dict[str, Any]:
    """Runs both stages as a comparison does, and opens what they wrote."""
    from workbench.data import stages
    from workbench.packed import PackedPairs
    from workbench.tokens import load_tokenizer

    pairs, packed = home / "pairs", home / "packed"
    pairs.mkdir()
    packed.mkdir()
    log: Any = Log()
    reading, packing, opening = Clock(), Clock(), Clock()
    with reading:
        stages.file_pairs({}, {"source": home / "rows.jsonl"}, pairs, log)
    reading_bytes = peak_bytes()
    load_tokenizer(tokenizer)  # imports transformers before the clock starts, as the tokenizer's own process does
    import_bytes = peak_bytes()
    with packing:
        config = {"max_length": 2048, "max_prompt_tokens": 1024, "max_response_tokens": 128}
        stages.pack_pairs(config, {"pairs": pairs, "tokenizer": tokenizer}, packed, log)
    packing_bytes = peak_bytes()
    with opening:
        opened = PackedPairs(packed)
    report = json.loads((pairs / "report.json").read_text())
    return {
        "check_split_write_s": reading.wall_s, "tokenise_pack_s": packing.wall_s, "open_s": opening.wall_s,
        "check_split_write_cpu_s": reading.cpu_s, "tokenise_pack_cpu_s": packing.cpu_s, "packed_pairs": len(opened),
        "duplicates": sum(one["count"] for one in report["findings"] if one["code"] == "duplicate_pair"),
        "check_split_write_peak_bytes": reading_bytes, "import_peak_bytes": import_bytes,
        "pack_peak_bytes": packing_bytes, "peak_bytes": peak_bytes(),
    }  # fmt: skip


def tokenizer_alone(home: Path, folder: Path, half: int | None = None) -> dict[str, Any]:
    """Seconds in the tokenizer's calls on what packing encodes, and on each text once.

    Args:
        home: With the rows.
        folder: With the tokenizer.
        half: 0 or 1: every other batch alone; None: all.
    """
    from workbench.tokens import encode_texts, load_tokenizer

    tokenizer = load_tokenizer(folder)

    def rows() -> Iterator[list[dict[str, str]]]:
        with (home / "rows.jsonl").open(encoding="utf-8") as file:
            batch = []
            for line in file:
                batch.append(json.loads(line))
                if len(batch) == BATCH:
                    yield batch
                    batch = []
            if batch:
                yield batch

    joint, once, tokens, characters = Clock(), Clock(), 0, 0
    for number, batch in enumerate(rows()):
        if half is not None and number % 2 != half:
            continue
        texts = [
            text for row in batch
            for text in (row["prompt"], row["prompt"] + row["chosen"], row["prompt"] + row["rejected"])
        ]  # fmt: skip
        singles = [row[name] for row in batch for name in ("prompt", "chosen", "rejected")]
        with joint:
            found = encode_texts(tokenizer, texts)
        with once:
            encode_texts(tokenizer, singles)
        tokens += sum(map(len, found))
        characters += sum(map(len, singles))
    return {
        "joint_s": joint.wall_s, "joint_cpu_s": joint.cpu_s, "texts_once_s": once.wall_s,
        "texts_once_cpu_s": once.cpu_s, "tokens": tokens, "characters": characters,
    }  # fmt: skip


def child(task: str, home: Path, tokenizer: Path) -> dict[str, Any]:
    """One measurement in a process of its own."""
    command = [sys.executable, str(Path(__file__).resolve()), "--task", task, "--home", str(home)]
    done = subprocess.run([*command, "--tokenizer", str(tokenizer)], cwd=ROOT, check=True, stdout=subprocess.PIPE)
    result: dict[str, Any] = json.loads(done.stdout)
    return result


def measure(count: int, home: Path, tokenizer: Path | None, *, words: bool) -> dict[str, Any]:
    """All figures of one run.

    Args:
        count: Rows.
        home: An empty folder with room for about 6 kB a row.
        tokenizer: Folder of a tokenizer; None: one is trained.
        words: Train the word-level one, which is several times as fast as a language model's.
    """
    write_rows(home / "rows.jsonl", count)
    if tokenizer is None:
        tokenizer = home / "tokenizer"
        train_tokenizer(home / "rows.jsonl", tokenizer, words=words)
    # One half before and one after: a machine that gets slower meanwhile slows both sides.
    before = child("first_half", home, tokenizer)
    prepared = child("prepare", home, tokenizer)
    after = child("second_half", home, tokenizer)
    return figures(count, prepared, {name: before[name] + after[name] for name in before})


def figures(count: int, prepared: dict[str, Any], alone: dict[str, Any]) -> dict[str, Any]:
    """Rates and shares of what the two processes measured."""
    whole = prepared["check_split_write_s"] + prepared["tokenise_pack_s"]
    cpu = prepared["check_split_write_cpu_s"] + prepared["tokenise_pack_cpu_s"]
    return {
        "rows": count, "characters_per_row": alone["characters"] / count, "tokens_per_row": alone["tokens"] / count,
        "rows_per_s": count / whole, "tokenizer_rows_per_s": count / alone["joint_s"],
        "tokenizer_once_rows_per_s": count / alone["texts_once_s"], "share": alone["joint_s"] / whole,
        "share_once": alone["texts_once_s"] / whole, "cpu_share": alone["joint_cpu_s"] / cpu,
        "cpu_share_once": alone["texts_once_cpu_s"] / cpu, "peak_gib": prepared["peak_bytes"] / 2**30,
        "cores": os.cpu_count(), "prepare": prepared, "tokenizer": alone,
    }  # fmt: skip


def table(found: dict[str, Any]) -> str:
    """The figures for people."""
    prepared, rows = found["prepare"], found["rows"]
    gib = {name: prepared[f"{name}_peak_bytes"] / 2**30 for name in ("check_split_write", "import", "pack")}
    return "\n".join(
        [
            f"{rows:,} rows of {found['characters_per_row']:,.0f} characters, {found['tokens_per_row']:,.0f} tokens to "
            f"encode; {found['cores']} cores",
            f"check, split, write     {rows / prepared['check_split_write_s']:>9,.0f} rows/s   peak "
            f"{gib['check_split_write']:.2f} GiB",
            f"tokenise, filter, pack  {rows / prepared['tokenise_pack_s']:>9,.0f} rows/s   peak {gib['pack']:.2f} GiB "
            f"(imports alone {gib['import']:.2f})",
            f"both                    {found['rows_per_s']:>9,.0f} rows/s   peak {found['peak_gib']:.2f} GiB",
            f"tokenizer, prompt x 3   {found['tokenizer_rows_per_s']:>9,.0f} rows/s   both: {found['share']:.0%} of "
            f"its rate, {found['cpu_share']:.0%} by CPU time",
            f"tokenizer, texts once   {found['tokenizer_once_rows_per_s']:>9,.0f} rows/s   both: "
            f"{found['share_once']:.0%} of its rate, {found['cpu_share_once']:.0%} by CPU time",
            f"opening what was packed {rows / prepared['open_s']:>9,.0f} rows/s",
        ]
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--json", action="store_true", help="print one object")
    parser.add_argument("--keep", type=Path, help="work in this new folder and leave it")
    parser.add_argument("--tokenizer", type=Path, help="a tokenizer's folder; trained on the rows by default")
    parser.add_argument("--words", action="store_true", help="a word-level tokenizer: quick where memory is asked for")
    parser.add_argument("--task", choices=["first_half", "prepare", "second_half"], help=argparse.SUPPRESS)
    parser.add_argument("--home", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.task is not None:
        if options.task == "prepare":
            result = prepare(options.home, options.tokenizer)
        else:
            result = tokenizer_alone(options.home, options.tokenizer, int(options.task == "second_half"))
        print(json.dumps(result))
        return
    home = options.keep or Path(tempfile.mkdtemp(prefix="data-scale-"))
    try:
        home.mkdir(parents=True, exist_ok=options.keep is None)
        found = measure(
            options.rows, home.resolve(), options.tokenizer and options.tokenizer.resolve(), words=options.words
        )
    finally:
        if options.keep is None:
            shutil.rmtree(home, ignore_errors=True)
    print(json.dumps(found, indent=1) if options.json else table(found))


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))
    main()
