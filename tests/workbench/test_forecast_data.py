"""What `doctor` makes of a source's first rows: pairs as the comparison will make them, scaled to the whole source."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipelines.forecast_data import look, look_at_prompts
from tests.workbench.test_forecast import of_giant
from workbench.data.layout import Layout
from workbench.errors import ConfigError
from workbench.forecast import lines_of

PAIR = {"prompt": "p" * 70, "chosen": "c" * 35, "rejected": "r" * 7}


def jsonl(path: Path, rows: list[dict[str, Any]]) -> Path:
    text = "".join(json.dumps(row) + "\n" for row in rows).encode()
    path.write_bytes(gzip.compress(text) if path.suffix == ".gz" else text)
    return path


def test_a_source_that_is_larger_than_its_head_is_scaled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [PAIR | {"chosen": f"{number:05d}" * 7} for number in range(4000)]
    plain = look(jsonl(tmp_path / "a.jsonl", rows), Layout(), None, looked_at=500)
    assert (plain.pairs, plain.prompt, plain.response, plain.whole) == (4000, 70.0, 21.0, False)
    zipped = jsonl(tmp_path / "a.jsonl.gz", rows)
    assert look(zipped, Layout(), None, looked_at=500).pairs == 4000
    monkeypatch.setattr("pipelines.forecast_data.COUNTED_BYTES", 0)  # a large file's bytes tell
    assert look(tmp_path / "a.jsonl", Layout(), None, looked_at=500).pairs == 4000
    random = np.random.default_rng(0)
    rows = [PAIR | {"chosen": random.bytes(60).hex()} for _ in range(4000)]
    assert look(jsonl(zipped, rows), Layout(), None, looked_at=2000).pairs == pytest.approx(4000, rel=0.15)
    assert look(tmp_path / "a.jsonl", Layout(), 700, looked_at=500).pairs == 700
    assert look(tmp_path / "a.jsonl", Layout(), None).whole
    import pyarrow
    import pyarrow.parquet

    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "a.parquet")
    assert look(tmp_path / "a.parquet", Layout(), None, looked_at=500).pairs == 4000


def test_columns_ratings_and_implied_prompts_are_read_as_the_comparison_reads_them(tmp_path: Path) -> None:
    named = jsonl(tmp_path / "n.jsonl", [{"q": "p" * 70, "good": "c" * 35, "bad": "r" * 7}] * 10)
    found = look(named, Layout(columns={"prompt": "q", "chosen": "good", "rejected": "bad"}), None)
    assert (found.pairs, found.prompt, found.response) == (10, 70.0, 21.0)
    start = "\n\nHuman: hello\n\nAssistant:"
    implied = jsonl(tmp_path / "i.jsonl", [{"chosen": start + " yes, do", "rejected": start + " no"}] * 4)
    found = look(implied, Layout(), None)
    assert (found.pairs, found.prompt, found.response) == (4, len(start), 5.5)
    said = [{"role": "user", "content": "p" * 9}]
    chat = [{"chosen": [*said, {"role": "assistant", "content": "c" * 4}],
             "rejected": [*said, {"role": "assistant", "content": "r" * 6}]}]  # fmt: skip
    found = look(jsonl(tmp_path / "c.jsonl", chat * 4), Layout(), None)
    assert (found.prompt, found.response) == (9.0, 5.0)
    rated = jsonl(tmp_path / "r.jsonl", [{"prompt": "p", "responses": ["a", "bb", "ccc"], "scores": [1, 2, 3]}] * 5)
    assert look(rated, Layout(pairing="all"), None).pairs == 15
    with pytest.raises(ConfigError, match="several ways"):
        look(rated, Layout(), None)
    assert look_at_prompts(jsonl(tmp_path / "p.jsonl", [{"q": "abc"}]), {"prompt": "q"}, None).prompt == 3.0


def test_rows_that_name_their_split_decide_how_many_train(tmp_path: Path) -> None:
    rows = [PAIR | {"split": "train" if number % 4 else "test"} for number in range(8)]
    assert look(jsonl(tmp_path / "s.jsonl", rows), Layout(), None).train == 0.75
    assert look(jsonl(tmp_path / "t.jsonl", [PAIR]), Layout(), None).train is None


def test_json_names_what_does_not_fit_and_what_is_not_counted() -> None:
    plain = of_giant(80e9).to_json()
    assert any("ppo ppo needs" in one for one in plain["problems"])
    assert of_giant(1e13).to_json()["problems"] == []
    assert "gold.reward_model" in plain["not_counted"]
    assert lines_of(of_giant(80e9))[-1].startswith("not counted: ")
