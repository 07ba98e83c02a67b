"""`workbench data check`: every finding is raised by the fault it names, and by nothing else."""

from __future__ import annotations

import gzip
import json
import random
import subprocess
import sys
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from workbench.cli import main
from workbench.data.check import Checked, Settings, check
from workbench.data.check_drop import drop_into
from workbench.data.check_near import Sketchbook, shingles
from workbench.data.check_rows import (
    earlier_turns,
    iban_holds,
    luhn,
    personal_strings,
    precision_of,
    prompts_for,
)
from workbench.data.findings import CODES
from workbench.data.layout import Layout
from workbench.data.light_tokenizer import LightTokenizer
from workbench.data.validate import Options
from workbench.errors import ConfigError, DataError

ROOT = Path(__file__).parents[2]


def text(rng: random.Random, count: int) -> str:
    return " ".join(f"word{rng.randrange(10_000)}x" for _ in range(count))


def rows(count: int = 40, *, seed: int = 0, **more: Any) -> list[dict[str, Any]]:
    """Pairs without any fault: the longer response wins half of the time."""
    rng = random.Random(seed)
    found = []
    for place in range(count):
        longer, shorter = text(rng, 14), text(rng, 8)
        chosen, rejected = (longer, shorter) if place % 2 else (shorter, longer)
        found.append({"prompt": text(rng, 12), "chosen": chosen, "rejected": rejected, **more})
    return found


def write(folder: Path, items: list[dict[str, Any]], name: str = "pairs.jsonl") -> Path:
    path = folder / name
    path.write_text("".join(json.dumps(item) + "\n" for item in items))
    return path


def run(folder: Path, items: list[dict[str, Any]], **settings: Any) -> Checked:
    options = settings.pop("options", Options())
    return check(write(folder, items), Settings(options=options, **settings))


def codes(found: Checked) -> dict[str, tuple[str, int, tuple[int, ...]]]:
    return {one.code: (one.severity, one.count, one.rows) for one in found.findings}


def test_good_rows_have_no_error_and_no_warning(tmp_path: Path) -> None:
    found = run(tmp_path, rows())
    assert found.ok
    assert codes(found).keys() == {"length_balance"}
    assert (found.rows, found.kept) == (40, 40)


def test_the_json_is_what_the_design_says(tmp_path: Path) -> None:
    found = run(tmp_path, [*rows(), {"prompt": "p", "chosen": "", "rejected": "x"}]).to_json()
    assert found.keys() == {"schema", "rows", "ok", "findings"}
    assert (found["schema"], found["rows"], found["ok"]) == (1, 41, False)
    assert found["findings"][0] == {
        "code": "empty_text", "severity": "error", "count": 1, "rows": [41],
        "message": "pairs.jsonl:41: chosen is empty", "fix": CODES["empty_text"].fix,
    }  # fmt: skip


# ---- near duplicates and leakage


def test_near_duplicates_are_found_and_exact_ones_are_not_called_near(tmp_path: Path) -> None:
    items = rows()
    near = items[3] | {"chosen": items[3]["chosen"] + " indeed"}
    opposite = items[5] | {"chosen": items[5]["rejected"], "rejected": items[5]["chosen"]}
    found = codes(run(tmp_path, [*items, near, items[4], opposite]))
    assert found["near_duplicate"] == ("warning", 1, (41,))
    assert found["duplicate_pair"][2] == (42,)
    assert found["contradiction"][2] == (43,)
    assert "near_duplicate" not in codes(run(tmp_path, [*items, near], near=None))


def test_near_duplicates_do_not_depend_on_who_comes_when(tmp_path: Path) -> None:
    items = rows(300)
    items += [items[at] | {"rejected": items[at]["rejected"] + " also"} for at in range(0, 300, 10)]
    first = codes(run(tmp_path, items))["near_duplicate"]
    again = codes(run(tmp_path, items))["near_duplicate"]
    assert first == again
    assert first[1] == 30
    assert first[2] == tuple(range(301, 311))


def test_a_text_that_repeats_often_is_compared_in_linear_time() -> None:
    book = Sketchbook()
    for place in range(3000):
        book.add(
            shingles(f"the same question of always number {place}" if place % 2 else f"{place} {place + 1} {place + 2}")
        )
    compared = sum(len(members) for members, _ in book.buckets())
    assert compared <= 12 * 3000


@given(st.integers(0, 10))
def test_sketches_estimate_similarity(shared: int) -> None:
    """Jaccard of sets that share a known part, within four standard errors."""
    both = set(range(40 * shared))
    one, other = (both | set(range(start, start + 400 - 40 * shared)) for start in (10_000, 20_000))
    book = Sketchbook()
    for pieces in (one, other):
        book.add(np.array(sorted(pieces), dtype=np.uint32))
    truth = len(one & other) / len(one | other)
    estimate = float(book.similarity(np.array([0]), np.array([1]))[0])
    assert abs(estimate - truth) <= 4 * np.sqrt(max(truth * (1 - truth), 1e-9) / 64)


def test_a_prompt_in_two_splits_is_an_error_and_a_near_one_a_warning(tmp_path: Path) -> None:
    items = [row | {"split": "train" if at < 30 else "test"} for at, row in enumerate(rows())]
    leak = items[0] | {"prompt": items[0]["prompt"].upper() + "  ", "split": "test", "chosen": "e", "rejected": "f"}
    near = items[1] | {"prompt": items[1]["prompt"] + " please", "split": "test", "chosen": "a b", "rejected": "c d"}
    found = run(tmp_path, [*items, leak, near])
    assert not found.ok
    assert codes(found)["split_leak"] == ("error", 1, (41,))
    assert codes(found)["near_leak"] == ("warning", 1, (42,))
    assert "near_duplicate" not in codes(found)


def test_a_dialogue_that_goes_on_in_another_split(tmp_path: Path) -> None:
    start = "\n\nHuman: hello there my friend\n\nAssistant:"
    assert list(earlier_turns(start)) == []
    longer = start + " Hi.\n\nHuman: and then?\n\nAssistant:"
    assert list(earlier_turns(longer)) == [start]
    items = [row | {"split": "train" if at < 30 else "test"} for at, row in enumerate(rows())]
    items[2] |= {"prompt": start}
    items[35] |= {"prompt": longer}
    assert codes(run(tmp_path, items))["continued_leak"] == ("warning", 1, (36,))
    items[35]["split"] = "train"
    assert "continued_leak" not in codes(run(tmp_path, items))


def test_splits_that_come_out_empty_or_too_small(tmp_path: Path) -> None:
    fractions = {"validation": 0.2, "test": 0.2}
    found = run(tmp_path, rows(60), options=Options(fractions=fractions))
    assert codes(found)["few_test_prompts"][0] == "warning"
    assert "empty_split" in codes(run(tmp_path, rows(2), options=Options(fractions=fractions)))
    wide = run(tmp_path, rows(60), options=Options(fractions=fractions), precision=0.3)
    assert codes(wide)["precision"][0] == "info"


def test_what_a_test_split_can_tell() -> None:
    assert precision_of(381)[1] == pytest.approx(0.05, abs=5e-4)
    assert prompts_for(0.05) == 381  # n = z^2 / (4 d^2) - z^2: 384 for the plain interval, Wilson's is a little shorter
    assert precision_of(prompts_for(0.02))[1] <= 0.02 < precision_of(prompts_for(0.02) - 2)[1]


# ---- balance


def test_length_imbalance_needs_the_whole_interval_outside_the_band(tmp_path: Path) -> None:
    tilted = []
    for row in rows(200):
        shorter, longer = sorted((row["chosen"], row["rejected"]), key=len)
        tilted.append(row | {"chosen": longer, "rejected": shorter})
    assert codes(run(tmp_path, tilted))["length_imbalance"][0] == "warning"
    assert codes(run(tmp_path, tilted[:4]))["length_balance"][0] == "info"  # four pairs show nothing
    assert "length_balance" in codes(run(tmp_path, tilted, length_band=(0.0, 1.0)))


def test_position_imbalance_is_seen_where_labels_say_what_was_first(tmp_path: Path) -> None:
    def label(first: bool, prefers: bool) -> dict[str, Any]:
        return {"annotator": "ann", "prefers_first": prefers, "chosen_first": first}

    biased = [row | {"annotations": [label(at % 2 == 0, at % 2 == 0)]} for at, row in enumerate(rows(200))]
    assert codes(run(tmp_path, biased))["position_imbalance"][0] == "warning"
    fair = [row | {"annotations": [label(at % 2 == 0, at % 4 < 2)]} for at, row in enumerate(rows(200))]
    assert codes(run(tmp_path, fair))["position_balance"][0] == "info"
    bad = [row | {"annotations": [{"annotator": "a", "prefers_first": True, "chosen_first": "yes"}]} for row in rows(1)]
    assert "chosen_first is 'yes'" in run(tmp_path, bad).findings[0].message


# ---- personal data


def test_personal_strings_are_counted_and_never_shown(tmp_path: Path) -> None:
    secret = "write to ann.other@example.org or +44 20 7946 0958, card 4111 1111 1111 1111, GB82 WEST 1234 5698 7654 32"
    items = rows()
    items[6]["chosen"] += f" {secret} from 8.8.8.8"
    found = run(tmp_path, items)
    kinds = {code: one for code, one in codes(found).items() if code.startswith("pii_")}
    assert kinds == {f"pii_{kind}": ("warning", 1, (7,)) for kind in ("email", "phone", "card", "iban", "ip")}
    told = json.dumps(found.to_json())
    assert not any(part in told for part in ("ann.other", "7946", "4111", "WEST", "8.8.8.8"))
    assert not any(code.startswith("pii_") for code in codes(run(tmp_path, items, personal=False)))


@pytest.mark.parametrize(
    "innocent",
    ["at 12:30 on 2024-01-15", "version 1.2.3.4 of 127.0.0.1 and 192.168.0.1", "1234 5678 9012 3456", "in 1969 or 1970",
     "a @ b", "3.14159265358979", "0000 0000 0000 0000", "DE12 3456 7890 1234 5678 90", "chapter 12-34 56"],
)  # fmt: skip
def test_what_is_no_personal_data(innocent: str) -> None:
    kinds = personal_strings(innocent)
    assert kinds.keys() <= ({"ip"} if "1.2.3.4" in innocent else set())


def test_check_digits() -> None:
    assert luhn("4539578763621486")
    assert not luhn("4539578763621487")
    assert iban_holds("DE89 3704 0044 0532 0130 00")
    assert not iban_holds("DE88 3704 0044 0532 0130 00")


# ---- the model


def test_rows_against_a_context(tmp_path: Path, model_folder: Path) -> None:
    tokenizer = LightTokenizer(model_folder)
    word = tokenizer.encode("the", add_special_tokens=False)
    assert len(word) == 1
    items = [
        {"prompt": "the " * 5, "chosen": "the", "rejected": "the the"},
        {"prompt": "the " * 200, "chosen": "the", "rejected": "the the"},
        {"prompt": "the " * 50, "chosen": "the " * 60, "rejected": "the the"},
        {"prompt": "the " * 30, "chosen": "the", "rejected": "the the"},
    ]
    found = codes(run(tmp_path, items, model=model_folder, lengths={"max_prompt_tokens": 60}))
    assert found["over_length_prompt"][2] == (2,)
    assert found["over_length_pair"][2] == (3,)
    found = codes(run(tmp_path, items, model=model_folder, lengths={"max_length": 40, "max_response_tokens": 15}))
    assert found["prompt_leaves_no_room"][2] == (2, 3, 4)


def test_pad_and_end_tokens(tmp_path: Path, model_folder: Path) -> None:
    def copy(name: str, **changes: Any) -> Path:
        folder = tmp_path / name
        folder.mkdir()
        (folder / "tokenizer.json").write_bytes((model_folder / "tokenizer.json").read_bytes())
        settings = json.loads((model_folder / "tokenizer_config.json").read_text()) | changes
        (folder / "tokenizer_config.json").write_text(json.dumps(settings))
        return folder

    eos = LightTokenizer(model_folder).special("eos_token")
    cases = {"no_pad": {"pad_token": None}, "no_eos": {"eos_token": None}, "pad_is_stop": {"pad_token": eos}}
    for code, changes in cases.items():
        found = run(tmp_path, rows(3), model=copy(code, **changes))
        assert codes(found)[code][0] == "error"
    with pytest.raises(ConfigError, match=r"no tokenizer\.json"):
        run(tmp_path, rows(3), model=tmp_path)


def test_the_light_tokenizer_is_transformers_own(model_folder: Path, tmp_path: Path) -> None:
    from workbench.tokens import load_tokenizer

    template = (
        "{% for message in messages %}\n{{ bos_token }}{{ message['role'] | tojson }}: {{ message.content }}\n"
        "{% if loop.index > 9 %}{% break %}{% endif %}\n{% endfor %}{% if add_generation_prompt %}assistant:{% endif %}"
    )
    folder = tmp_path / "model"
    folder.mkdir()
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / name).write_bytes((model_folder / name).read_bytes())
    (folder / "chat_template.jinja").write_text(template)
    light, full = LightTokenizer(folder), load_tokenizer(folder)
    said = [{"role": "user", "content": "the café <b>"}, {"role": "assistant", "content": "the the"}]
    for prompt in (True, False):
        told = light.apply_chat_template(said, tokenize=False, add_generation_prompt=prompt)
        assert told == full.apply_chat_template(said, tokenize=False, add_generation_prompt=prompt)
        assert light.encode(told) == full.encode(told)
    assert (light.pad_token_id, light.eos_token_id, len(light)) == (full.pad_token_id, full.eos_token_id, len(full))


# ---- severities, dropping, the command


def test_severities_can_be_changed_but_errors_stay(tmp_path: Path) -> None:
    items = [*rows(), rows()[0]]
    assert not run(tmp_path, items, levels={"duplicate_pair": "error"}).ok
    assert "duplicate_pair" not in codes(run(tmp_path, items, levels={"duplicate_pair": "off"}))
    for levels in ({"empty_text": "warning"}, {"nonsense": "off"}, {"duplicate_pair": "fatal"}):
        with pytest.raises(ConfigError, match="--severity"):
            run(tmp_path, items, levels=levels)


def call(*words: str | Path, code: int = 0) -> Any:
    result = CliRunner().invoke(main, [str(word) for word in words])
    assert result.exit_code == code, (result.output, result.exception)
    return result


def test_dropping_lists_every_row_and_changes_nothing(tmp_path: Path) -> None:
    items = rows(20)
    bad = {"prompt": "p q", "chosen": " ", "rejected": "x"}
    same = {"prompt": "p q", "chosen": "x", "rejected": "x"}
    path = write(tmp_path, [*items, *[bad] * 30, same, items[0]])
    before = path.read_bytes()
    call("data", "check", path, code=2)
    words = ("--drop-invalid", "--deduplicate", "--max-identical", "0.5", "--out", tmp_path / "kept.jsonl.gz")
    call("data", "check", path, *words)
    kept = [json.loads(line) for line in gzip.decompress((tmp_path / "kept.jsonl.gz").read_bytes()).splitlines()]
    assert kept == items
    listed = [json.loads(line) for line in (tmp_path / "kept.dropped.jsonl").read_text().splitlines()]
    assert [one["row"] for one in listed] == [*range(21, 53)]
    assert {one["code"] for one in listed} == {"empty_text", "identical_pair", "duplicate_pair"}
    assert path.read_bytes() == before
    call("data", "check", path, *words, code=2)  # what exists is never overwritten
    call("data", "check", path, "--drop-invalid", "--out", path, code=2)
    leak = write(tmp_path, [items[0] | {"split": one} for one in ("train", "test")], "leak.jsonl")
    call("data", "check", leak, "--drop-invalid", "--out", tmp_path / "leak.kept.jsonl", code=2)
    assert not (tmp_path / "leak.kept.jsonl").exists()
    assert json.loads(call("data", "check", tmp_path / "kept.jsonl.gz", "--json").stdout)["ok"]


def dropped(path: Path, layout: Layout, **options: Any) -> tuple[list[dict[str, Any]], list[tuple[int, str]]]:
    """What is written, and (row, code) of what is not."""
    out = path.parent / f"{path.stem}.kept.jsonl"
    found = drop_into(path, Options(drop_invalid=True, layout=layout, **options), out)
    kept, listed = ([json.loads(line) for line in one.read_text().splitlines()] for one in (out, found.listed))
    assert found.kept == len(kept)
    assert sum(found.reasons.values()) == len(listed)
    return kept, [(one["row"], one["code"]) for one in listed]


def test_dropping_writes_rows_that_the_same_config_reads(tmp_path: Path) -> None:
    items = [
        {"question": f"q{at}", "chosen": "yes", "rejected": "no", "a": 3, "b": 3 - (at % 3 or 0.5), "note": "x"}
        for at in range(250)
    ]
    items[241]["chosen"] = ""
    items[200]["note"] = "\ud800"  # nobody reads this column, but no file in UTF-8 can hold it
    columns = {"prompt": "question", "score_chosen": "a", "score_rejected": "b"}
    layout = Layout(columns=columns, margins="score_difference", min_gap=1.0)
    kept, listed = dropped(write(tmp_path, items), layout)
    gaps = [(at + 1, "small_gap") for at in range(0, 250, 3)]
    assert sorted(listed) == sorted([*gaps, (201, "bad_unicode"), (242, "empty_text")])
    assert kept == [item for at, item in enumerate(items) if at % 3 and at not in (200, 241)]
    again = check(tmp_path / "pairs.kept.jsonl", Settings(options=Options(layout=layout)))
    assert (again.rows, again.kept) == (len(kept), len(kept))


def test_dropping_lists_prompts_of_which_no_pair_came(tmp_path: Path) -> None:
    items = [
        {"prompt": "one", "responses": ["a", "b", "c"], "scores": [1, 2, 2]},  # a tie, but two pairs too
        {"prompt": "two", "responses": ["a", "b"], "scores": [2, 2]},
        {"prompt": "three", "responses": ["a"], "scores": [1]},
    ]
    layout = Layout(pairing="all", margins="score_difference")
    kept, listed = dropped(write(tmp_path, items), layout)
    assert listed == [(2, "rating_tie"), (3, "single_response")]
    assert [(one["prompt"], one["chosen"], one["target_margin"]) for one in kept] == [("one", "b", 1), ("one", "c", 1)]


def test_dropping_writes_dates_and_refuses_what_json_has_no_form_for(tmp_path: Path) -> None:
    when = datetime(2024, 5, 1, 12, 30)
    row = {"prompt": "p", "chosen": "yes", "rejected": "no"}
    for name, value in (("dates", when), ("bytes", b"\x00")):
        pq.write_table(pa.Table.from_pylist([row | {"extra": value}]), tmp_path / f"{name}.parquet")
    kept, _ = dropped(tmp_path / "dates.parquet", Layout())
    assert kept == [row | {"extra": "2024-05-01T12:30:00"}]
    with pytest.raises(DataError, match="row 1 cannot be written as JSON: it holds bytes"):
        dropped(tmp_path / "bytes.parquet", Layout())
    assert [path.name for path in tmp_path.glob("bytes*")] == ["bytes.parquet"]


def test_the_command_takes_everything_from_a_config(tmp_path: Path, model_folder: Path) -> None:
    items = [*rows(60), {"prompt": "p q", "chosen": " ", "rejected": "x"}]
    config = tmp_path / "mine.yaml"
    config.write_text(
        f"name: mine\nmodel: {{policy: {model_folder}}}\n"
        f"data: {{preferences: {write(tmp_path, items)}, splits: {{validation: 0.2, test: 0.3}}, drop_invalid: true}}\n"
        "arms: {dpo: {}}\nevaluation: {max_response_tokens: 90, judges: [proxy]}\n"
    )
    found = json.loads(call("data", "check", "--config", config, "--json").stdout)
    by_code = {one["code"]: one for one in found["findings"]}
    assert by_code["empty_text"]["severity"] == "warning"
    assert by_code["prompt_leaves_no_room"]["count"] == 60  # 96 positions less 90 for the response
    call("data", "check", "--config", "smoke", code=2)  # a world makes its own pairs
    call("data", "check", code=2)
    call("data", "check", tmp_path / "none.jsonl", code=2)
    call("data", "check", write(tmp_path, items), "--severity", "pii_ip", code=2)


def test_people_see_errors_first_with_fix_and_option(tmp_path: Path) -> None:
    items = [*rows(), {"prompt": "p\u001b[31m", "chosen": "", "rejected": "x"}]
    out = call("data", "check", write(tmp_path, items), "--splits", "0.2", "0.2", code=2).stdout
    assert out.index("empty_text") < out.index("few_test_prompts") < out.index("length_balance")
    assert "[--drop-invalid]" in out
    assert "not usable as it is: 41 rows, 40 usable pairs" in out
    assert "\u001b" not in out


def test_check_and_annotators_load_nothing_heavy(tmp_path: Path, model_folder: Path) -> None:
    labels = [{"annotator": name, "prefers_first": True} for name in ("a", "b", "c")]
    path = write(tmp_path, rows(12, annotations=labels))
    code = (
        "import sys; from click.testing import CliRunner; from workbench.cli import main\n"
        f"for words in (['check', {str(path)!r}, '--model', {str(model_folder)!r}], "
        f"['annotators', {str(path)!r}, '--home', {str(tmp_path)!r}], "
        f"['describe', {str(path)!r}, '--home', {str(tmp_path)!r}, '--model', {str(model_folder)!r}]):\n"
        "    result = CliRunner().invoke(main, ['data', *words, '--json'])\n"
        "    assert result.exit_code == 0 or words[0] == 'check', result.output\n"
        "assert not {'torch', 'transformers', 'mlflow', 'datasets'} & set(sys.modules), sorted(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)


def test_every_code_is_documented() -> None:
    page = (ROOT / "docs" / "data.md").read_text(encoding="utf-8")
    assert [code for code in CODES if f"`{code}`" not in page] == []
