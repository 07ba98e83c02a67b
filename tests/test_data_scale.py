"""The benchmark of scale measures what it says: every row through both stages, the same texts on both sides."""

from __future__ import annotations

from pathlib import Path

from benchmarks import data_scale
from workbench.data.records_io import read_jsonl


def test_both_sides_work_on_the_same_texts(tmp_path: Path) -> None:
    rows = tmp_path / "rows.jsonl"
    data_scale.write_rows(rows, 300)
    data_scale.write_rows(tmp_path / "again.jsonl", 300)
    assert rows.read_bytes() == (tmp_path / "again.jsonl").read_bytes()
    data_scale.train_tokenizer(rows, tmp_path / "tokenizer", words=True)
    prepared = data_scale.prepare(tmp_path, tmp_path / "tokenizer")
    alone = data_scale.tokenizer_alone(tmp_path, tmp_path / "tokenizer")
    texts = list(read_jsonl(rows))
    assert prepared["packed_pairs"] == len(texts) == 300
    assert alone["characters"] == sum(len(text) for row in texts for text in row.values())
    words = sum(2 * len(row["prompt"].split()) + sum(len(text.split()) for text in row.values()) for row in texts)
    assert alone["tokens"] == words  # the prompt alone and before each response, the responses once
    assert prepared["check_split_write_peak_bytes"] <= prepared["import_peak_bytes"] <= prepared["peak_bytes"]
    both = prepared["check_split_write_s"] + prepared["tokenise_pack_s"]
    assert both > 0
    assert "both" in data_scale.table(data_scale.figures(300, prepared, alone))
