"""What reading, splitting and packing once gave, they give again: bit for bit, now that nothing is held in memory."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.workbench.messy_rows import digests, write_messy
from workbench.data import packing, stages
from workbench.data.findings import Findings
from workbench.data.records_io import LineFile, read_pairs, read_prompts, write_pairs, write_prompts
from workbench.data.scan import Later, note
from workbench.data.spool import Spool
from workbench.data.validate import Options, load_pairs, scan_pairs
from workbench.errors import DataError, IntegrityError
from workbench.packed import PackedPairs, PackedWriter, write_packed_pairs

SHARED = Path(__file__).parents[2] / "../shared"
LIMITS = {"max_prompt_tokens": 12, "max_length": 40, "max_response_tokens": 8}
# What the readers gave before they streamed: file -> first 16 digits of its sha256.
GOLDEN = json.loads((Path(__file__).parents[1] / "golden/data_stream.json").read_text())


class Log:
    """What the stages need of a StageLog."""

    seed = 3

    def say(self, message: str) -> None:
        """Not looked at."""


def _run(stage: Callable[..., None], out: Path, config: dict[str, Any], **inputs: Path) -> Path:
    out.mkdir()
    stage(config, inputs, out, Log())
    return out


@pytest.fixture(scope="module")
def messy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """messy.jsonl, ood.jsonl and a tokenizer."""
    home = tmp_path_factory.mktemp("messy")
    write_messy(home / "messy.jsonl")
    for name, count in (("ood", 8), ("plain", 60)):
        rows = [{"prompt": f"riddle {i}?", "chosen": f"yes {i}", "rejected": "no"} for i in range(count)]
        (home / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    _run(stages.world_model_files, home / "tokenizer", {"world": "helpdesk"})
    return home


@pytest.mark.parametrize("deduplicate", [False, True])
def test_a_messy_file_gives_what_it_gave(messy: Path, tmp_path: Path, deduplicate: bool) -> None:
    config = {
        "drop_invalid": True, "deduplicate": deduplicate, "max_identical_fraction": 0.5,
        "splits": {"validation": 0.2, "test": 0.2},
    }  # fmt: skip
    pairs = _run(stages.file_pairs, tmp_path / "pairs", config, source=messy / "messy.jsonl", ood=messy / "ood.jsonl")
    assert digests(pairs) == GOLDEN["pairs"][str(deduplicate)]
    packed = _run(stages.pack_pairs, tmp_path / "packed", LIMITS, pairs=pairs, tokenizer=messy / "tokenizer")
    assert digests(packed) == GOLDEN["packed"][str(deduplicate)]
    prompts = _run(stages.pack_prompts, tmp_path / "prompts", LIMITS, prompts=pairs, tokenizer=messy / "tokenizer")
    assert digests(prompts) == GOLDEN["prompts"]
    # The lines are put together from parts: they are what the records' own writer makes of them.
    (tmp_path / "again").mkdir()
    write_pairs(tmp_path / "again", read_pairs(pairs))
    write_prompts(tmp_path / "again", read_prompts(pairs))
    assert digests(tmp_path / "again").items() < digests(pairs).items()


def test_findings_keep_their_texts_rows_and_order(messy: Path) -> None:
    report = load_pairs(messy / "messy.jsonl", Options(), stop=False)[1].to_json()
    assert _digest(json.dumps(report, sort_keys=True)) == GOLDEN["report"], report
    with pytest.raises(DataError) as caught:
        load_pairs(messy / "messy.jsonl", Options())
    assert _digest(str(caught.value)) == GOLDEN["error"], str(caught.value)


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]


@pytest.mark.skipif(not SHARED.is_dir(), reason="needs the shared data beside the repository")
def test_hh_rlhf_and_stories_give_what_they_gave(tmp_path: Path) -> None:
    source = SHARED / "data/hh_rlhf/harmless-base.first-1500.jsonl.gz"
    pairs = _run(stages.file_pairs, tmp_path / "pairs", {"drop_invalid": True}, source=source)
    assert digests(pairs) == GOLDEN["hh"]
    limits = {"max_prompt_tokens": 300, "max_length": 512, "max_response_tokens": 48, "stop_token_ids": [1]}
    tokenizer = SHARED / "models/stories260k"
    assert (
        digests(_run(stages.pack_pairs, tmp_path / "q", limits, pairs=pairs, tokenizer=tokenizer))
        == GOLDEN["hh_packed"]
    )
    prompts = _run(stages.file_prompts, tmp_path / "stories", {}, source=SHARED / "data/stories/prompts.jsonl")
    assert digests(prompts) == GOLDEN["stories"]


def test_the_order_of_rows_changes_nothing_that_is_written(messy: Path, tmp_path: Path) -> None:
    lines = (messy / "plain.jsonl").read_bytes().splitlines(keepends=True)
    moved = tmp_path / "moved" / "plain.jsonl"
    moved.parent.mkdir()
    moved.write_bytes(b"".join(reversed(lines)))
    config = {"splits": {"validation": 0.3, "test": 0.3}}
    one = _run(stages.file_pairs, tmp_path / "one", config, source=messy / "plain.jsonl")
    other = _run(stages.file_pairs, tmp_path / "other", config, source=moved)
    assert digests(one) == digests(other)


def test_batches_of_one_row_give_the_same_ids(messy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pairs = _run(stages.file_pairs, tmp_path / "pairs", {}, source=messy / "plain.jsonl")
    found = [digests(_run(stages.pack_pairs, tmp_path / "a", LIMITS, pairs=pairs, tokenizer=messy / "tokenizer"))]
    monkeypatch.setattr(packing, "BATCH_CHARACTERS", 1)
    found.append(digests(_run(stages.pack_pairs, tmp_path / "b", LIMITS, pairs=pairs, tokenizer=messy / "tokenizer")))
    assert found[0] == found[1]


def test_observers_see_every_parsed_row_before_any_is_dropped(messy: Path) -> None:
    class Watch:
        def __init__(self) -> None:
            self.rows: list[int] = []
            self.finished = 0

        def see(self, row: int, texts: Any) -> None:
            self.rows.append(row)

        def finish(self, findings: Findings) -> None:
            self.finished += 1
            findings.add("fewer_pairs", 1, "seen")

    watch = Watch()
    table, report = scan_pairs(messy / "messy.jsonl", Options(), stop=False, observers=[watch])
    assert watch.finished == 1
    assert watch.rows == sorted(set(watch.rows))
    codes = {one.code: one.count for one in report.findings}
    assert codes["fewer_pairs"] == 1
    assert len(watch.rows) == report.kept + codes["identical_pair"]
    assert set(table.rows.tolist()) < set(watch.rows)


# ---- the parts


def test_a_spool_gives_back_what_it_took(tmp_path: Path) -> None:
    spool = Spool(tmp_path)
    records = [b"", b"one", b"\0\n" * 1000]
    for at, record in enumerate(records):
        spool.append(record)
        assert spool[at] == record  # also while it grows
    assert [spool[at] for at in (2, 0, 1)] == [records[at] for at in (2, 0, 1)]
    assert list(tmp_path.iterdir()) == []  # it has no name
    with pytest.raises(IndexError, match="record 3 of 3"):
        spool[3]


def test_held_back_findings_come_out_as_if_they_had_been_added() -> None:
    direct, later, spelled = Findings("f"), Later(), Findings("f")
    for row in [*range(1, 30), 3, 3]:
        direct.add("empty_text", row, "chosen is empty")
        later.add("empty_text", row, "chosen is empty")
    for _ in range(3):
        direct.add("no_chat_template", None, "none")
        later.add("no_chat_template", None, "none")
    later.pass_on(spelled)
    assert spelled.all() == direct.all()
    note(spelled, "duplicate_pair", [], 0)
    assert spelled.count("duplicate_pair") == 0


def test_packed_pairs_written_one_by_one_are_numpy_files(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    rows = [tuple(rng.integers(0, 50_000, rng.integers(0, 9)).tolist() for _ in range(3)) for _ in range(200)]
    meta: list[dict[str, Any]] = [
        {"pair_id": str(at), "split": "test" if at % 3 else "train", "target_margin": None} for at in range(200)
    ]
    meta[7]["target_margin"] = 0.5
    write_packed_pairs(tmp_path, rows, meta)
    for at, name in enumerate(("prompt", "chosen", "rejected")):
        flat = np.array([one for row in rows for one in row[at]], dtype=np.int32)
        np.save(tmp_path / "expected.npy", flat)
        assert (tmp_path / "expected.npy").read_bytes() == (tmp_path / f"{name}_ids.npy").read_bytes()
        offsets = np.load(tmp_path / f"{name}_offsets.npy")
        assert offsets.tolist() == [0, *np.cumsum([len(row[at]) for row in rows]).tolist()]
    packed = PackedPairs(tmp_path)
    assert [packed.meta(at) for at in range(200)] == meta
    assert packed.split_rows("train") == [at for at in range(200) if at % 3 == 0]
    assert packed.split_rows("elsewhere") == []
    prompt, chosen, rejected = rows[7]
    assert packed.as_lists(7) == {
        "prompt_ids": prompt, "chosen_ids": chosen, "rejected_ids": rejected, "margin": 0.5,
    }  # fmt: skip
    assert packed.as_lists(8)["margin"] is None


def test_a_writer_that_fails_leaves_no_packed_pairs(tmp_path: Path) -> None:
    with pytest.raises(TypeError), PackedWriter(tmp_path) as writer:
        writer.append([1], [2], [3], {"split": object()})
    with pytest.raises(IntegrityError):
        PackedPairs(tmp_path)


def test_a_damaged_line_is_named(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text('{"a": 1}\n[2]\n')
    lines = LineFile(path)
    assert lines[0] == {"a": 1}
    with pytest.raises(IntegrityError, match="expected an object") as caught:
        lines[1]
    assert caught.value.where == f"{path}:2"
    with pytest.raises(IntegrityError, match="missing"):
        LineFile(tmp_path / "gone.jsonl")
