"""Options of the data block that do not fit the source: refused before anything is planned, without torch."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from pipelines.sources import check_source, conversational, hub_name
from workbench.config import Data
from workbench.data import stages
from workbench.data.layout import Layout
from workbench.data.records_io import read_pairs
from workbench.errors import ConfigError, DataError


def _file(folder: Path, *rows: object) -> Path:
    path = folder / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def test_a_hub_id_carries_what_is_asked_of_it(tmp_path: Path) -> None:
    asked = {"revision": "abc", "folder": "harmless-base", "split": "test"}
    assert hub_name(Data.model_validate({"preferences": "a/b", **asked})) == "a/b:harmless-base@abc#test"
    assert hub_name(Data.model_validate({"preferences": "a/b"})) == "a/b"
    path = str(_file(tmp_path))
    for name, value in asked.items():
        with pytest.raises(ConfigError, match="has no effect") as caught:
            hub_name(Data.model_validate({"preferences": path, name: value}))
        assert caught.value.where == f"data.{name}"
    assert hub_name(Data.model_validate({"preferences": str(tmp_path), "split": "test"})) == str(tmp_path)


def test_folders_and_revisions_reach_the_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    from workbench.data.sources import load_hub

    asked: list[object] = []
    monkeypatch.setattr(datasets, "load_dataset", lambda *names, **options: asked.append((names, options)))
    load_hub("Anthropic/hh-rlhf:harmless-base@abc#test")
    assert asked == [(("Anthropic/hh-rlhf",), {"revision": "abc", "split": "test", "data_dir": "harmless-base"})]


def test_a_folder_with_splits_of_its_own_names(tmp_path: Path) -> None:
    import datasets

    rows = [{"prompt": "q", "chosen": "a", "rejected": "b"}]
    sets = {name: datasets.Dataset.from_list(rows) for name in ("train_prefs", "test_prefs")}
    datasets.DatasetDict(sets).save_to_disk(str(tmp_path / "set"))
    check_source(tmp_path / "set", Layout(split="test_prefs"))
    for layout, words in ((Layout(), "none named 'train'"), (Layout(split="train"), "no split 'train'")):
        with pytest.raises(DataError, match=words):
            check_source(tmp_path / "set", layout)


def test_held_out_rows_tell_what_they_are(tmp_path: Path) -> None:
    layout = Layout(format="rated_rows", pairing="all", rating="score", margins="score_difference", min_gap=1.0)
    path = _file(tmp_path, {"prompt": "q", "id": 3})
    assert check_source(path, layout, held_out=True) == Layout()
    with pytest.raises(ConfigError, match=r"no rating 'score'"):
        check_source(path, layout)
    path = _file(tmp_path, {"prompt": "q", "chosen": "a", "rejected": "b"})
    assert check_source(path, layout, held_out=True) == Layout(format="pairs")
    path = _file(tmp_path, {"prompt": "q", "responses": ["a", "b"], "ranks": [1, 2]})
    assert check_source(path, layout, held_out=True) == Layout(format="ranking", pairing="all", min_gap=1.0)
    path = _file(tmp_path, {"text": "q"})
    with pytest.raises(ConfigError, match="no column 'question'"):
        check_source(path, Layout(columns={"prompt": "question"}), held_out=True)


def test_pairs_of_ratings_may_have_held_out_pairs_of_another_format(tmp_path: Path) -> None:
    class Log:
        seed = 0

        def say(self, message: str) -> None:
            """Not looked at."""

    rows = [{"prompt": f"q{at // 2}", "response": "ab"[at % 2], "score": at % 2} for at in range(120)]
    source = _file(tmp_path, *rows).rename(tmp_path / "rated.jsonl")
    ood = _file(tmp_path, {"prompt": "riddle", "chosen": "a", "rejected": "b"})
    (tmp_path / "out").mkdir()
    config = {"layout": {"pairing": "all", "rating": "score"}}
    stages.file_pairs(config, {"source": source, "ood": ood}, tmp_path / "out", Log())  # type: ignore[arg-type]
    pairs = read_pairs(tmp_path / "out")
    assert [pair.prompt for pair in pairs if pair.split == "ood"] == ["riddle"]
    assert len(pairs) == 61
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert report["pairing"]["counts"]["pairs"] == 60
    assert "pairing" not in report["ood"]


def test_a_conversation_is_told_after_columns_were_renamed(tmp_path: Path) -> None:
    path = _file(tmp_path, {"dialogue": [{"role": "user", "content": "q"}], "chosen": "a", "rejected": "b"})
    assert conversational(path, Layout(columns={"prompt": "dialogue"}))
    assert not conversational(path)


def test_a_column_that_is_not_there_ends_plan_before_torch(tmp_path: Path, model_folder: Path) -> None:
    _file(tmp_path, {"question": "q", "chosen": "a", "rejected": "b"})
    config = tmp_path / "c.yaml"
    config.write_text(
        f"name: c\nmodel: {{policy: {model_folder}}}\nsft: none\n"
        "data: {preferences: rows.jsonl, columns: {prompt: instruction}}\narms: {dpo: {}}\n"
        "evaluation: {judges: [proxy], max_response_tokens: 4}\n",
        encoding="utf-8",
    )
    code = (
        "import sys\nfrom click.testing import CliRunner\nfrom workbench.cli import main\n"
        f"done = CliRunner().invoke(main, ['plan', {str(config)!r}, '--home', {str(tmp_path / 'home')!r}])\n"
        "print(done.output)\nassert done.exit_code == 2, done.exit_code\nassert 'torch' not in sys.modules"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=Path(__file__).parents[2], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "data.columns.prompt" in done.stdout
    assert "rows.jsonl has no column 'instruction'; it has 'question', 'chosen', 'rejected'" in done.stdout
