"""`workbench agree`: its figures against a computation by hand, what it refuses and when, its JSON and table."""

from __future__ import annotations

import json
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result

from tests import bench
from tests.ml_helpers import CPU, PAD, tiny_model
from workbench.cli import main
from workbench.models import new_reward_model, save_model
from workbench.results_agreement import Agreement
from workbench.tokens import load_tokenizer
from workbench.worlds import helpdesk


@dataclass(frozen=True)
class Files:
    """Small random models with the helpdesk tokenizer, and pairs of helpdesk sentences."""

    root: Path
    tokenizer: Any

    @property
    def words(self) -> list[str]:
        named = ("policy", "reference", "reward-model")
        return [*(word for name in named for word in (f"--{name}", str(self.root / name))), "--data", str(self.data)]

    @property
    def data(self) -> Path:
        return self.root / "pairs.jsonl"

    @property
    def rows(self) -> list[dict[str, str]]:
        return [json.loads(line) for line in self.data.read_text().splitlines()]


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Files:
    root = tmp_path_factory.mktemp("agree")
    helpdesk.build_tokenizer(root / "tokenizer")
    tokenizer = load_tokenizer(root / "tokenizer")
    for name, seed in (("policy", 1), ("reference", 2)):
        save_model(tiny_model(tokenizer, seed=seed), tokenizer, root / name)
    save_model(new_reward_model(root / "reference", CPU, 5, pad_id=PAD), tokenizer, root / "reward-model")
    rng = np.random.default_rng(0)
    vocabulary = helpdesk.vocabulary()[10:60]
    rows = [
        {"prompt": " ".join(rng.choice(vocabulary, 4)), "chosen": " ".join(rng.choice(vocabulary, rng.integers(2, 7))),
         "rejected": " ".join(rng.choice(vocabulary, rng.integers(2, 7)))}
        for _ in range(60)
    ]  # fmt: skip
    (root / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return Files(root, tokenizer)


def call(*words: str | Path, code: int = 0) -> Result:
    result = CliRunner().invoke(main, ["agree", *map(str, words)])
    assert result.exit_code == code, (result.exit_code, result.output, result.exception)
    assert "Traceback" not in result.output
    return result


def refused(*words: str | Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(call(*words, "--json", code=2).stdout)
    return dict(found["error"])


def margins_by_hand(files: Files, beta: float, per_token: bool = False) -> tuple[np.ndarray, np.ndarray]:
    """Margins one row at a time, without padding, from the softmax of each position."""
    from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

    models = [AutoModelForCausalLM.from_pretrained(files.root / name).eval() for name in ("policy", "reference")]
    scorer = AutoModelForSequenceClassification.from_pretrained(files.root / "reward-model", num_labels=1).eval()
    stop = files.tokenizer.eos_token_id
    implicit, explicit = [], []
    for row in files.rows:
        sides = []
        for side in ("chosen", "rejected"):
            prompt, response = (
                files.tokenizer.encode(row[name], add_special_tokens=False) for name in ("prompt", side)
            )
            ids, response = torch.tensor([[*prompt, *response, stop]]), [*response, stop]
            sums = []
            with torch.no_grad():
                for model in models:
                    chances = model(input_ids=ids).logits[0].log_softmax(-1)
                    sums.append(sum(float(chances[len(prompt) - 1 + i, token]) for i, token in enumerate(response)))
                hidden = scorer.base_model(input_ids=ids).last_hidden_state[0, -1]
                score = float(scorer.score(hidden))
            reward = beta * (sums[0] - sums[1])
            sides.append((reward / len(response) if per_token else reward, score))
        implicit.append(sides[0][0] - sides[1][0])
        explicit.append(sides[0][1] - sides[1][1])
    return np.array(implicit), np.array(explicit)


@pytest.mark.parametrize("per_token", [False, True])
def test_figures_are_those_of_a_computation_by_hand(files: Files, per_token: bool) -> None:
    found = json.loads(call(*files.words, "--beta", 0.5, "--json", *(["--per-token"] if per_token else [])).stdout)
    assert found.keys() == {"schema", "sets", "disagreements"}
    assert found["sets"].keys() == {"pairs"}
    one = Agreement.model_validate(found["sets"]["pairs"])
    implicit, explicit = margins_by_hand(files, 0.5, per_token)
    assert one.n_pairs == 60
    assert one.agreement.value == pytest.approx(np.mean(np.sign(implicit) == np.sign(explicit)))
    assert one.implicit_accuracy is not None
    assert one.explicit_accuracy is not None
    assert one.accuracy_difference is not None
    a, b = np.mean(implicit > 0), np.mean(explicit > 0)
    assert (one.implicit_accuracy.value, one.explicit_accuracy.value) == pytest.approx((a, b))
    assert one.accuracy_difference.value == pytest.approx(b - a)
    assert one.chance is not None
    assert one.chance.value == pytest.approx(a * b + (1 - a) * (1 - b))
    assert one.calibration is not None
    assert one.calibration.implicit_brier.value == pytest.approx(np.mean((1 - 1 / (1 + np.exp(-implicit))) ** 2))
    assert one.calibration.labels == "given"
    assert one.truth == "label"


def test_beta_scales_margins_and_changes_no_order(files: Files) -> None:
    small, large = (json.loads(call(*files.words, "--beta", b, "--json").stdout)["sets"]["pairs"] for b in (0.1, 2.0))
    for name in ("agreement", "implicit_accuracy", "spearman_margins", "kappa"):
        assert small[name] == large[name], name
    assert small["calibration"]["implicit_brier"] != large["calibration"]["implicit_brier"]


def test_samples_are_compared_too_and_seeded(files: Files) -> None:
    words = (*files.words, "--samples", 4, "--max-response-tokens", 6, "--limit", 30, "--json")
    found = json.loads(call(*words).stdout)["sets"]
    assert found.keys() == {"pairs", "on_policy/policy", "on_policy/reference"}
    one = Agreement.model_validate(found["on_policy/policy"])
    assert one.n_pairs == 30 * 6
    assert (one.truth, one.implicit_accuracy, one.kappa) == (None, None, None)
    assert one.spearman_within_prompt is not None
    assert len(one.by_kl) == 3
    # The log-ratio of a text that the policy did not write is no KL of it.
    assert found["pairs"]["by_kl"] == found["on_policy/reference"]["by_kl"] == []
    assert json.loads(call(*words).stdout)["sets"] == found
    assert json.loads(call(*words, "--seed", 1).stdout)["sets"]["on_policy/policy"] != found["on_policy/policy"]


def test_disagreements_come_with_their_texts(files: Files) -> None:
    words = (*files.words, "--samples", 3, "--max-response-tokens", 6, "--limit", 30, "--json")
    found = json.loads(call(*words).stdout)["disagreements"]
    implicit, explicit = (values[:30] for values in margins_by_hand(files, 0.1))
    listed = [one for one in found if one["set"] == "pairs"]
    assert len(listed) == min(20, int(((implicit > 0) != (explicit > 0)).sum()))
    sizes = [one["size"] for one in listed]
    assert sizes == sorted(sizes, reverse=True)
    for one in listed:
        row = next(i for i, given in enumerate(files.rows[:30]) if given["prompt"] == one["prompt"])
        sides = [files.rows[row]["chosen"], files.rows[row]["rejected"]]
        assert [one["explicit_prefers"], one["implicit_prefers"]] == (sides if explicit[row] > 0 else sides[::-1])
        assert one["explicit_margin"] == pytest.approx(abs(explicit[row]), rel=1e-3)
        assert one["implicit_margin"] == pytest.approx(abs(implicit[row]), rel=1e-3)
    assert {one["set"] for one in found} == {"pairs", "on_policy/policy", "on_policy/reference"}


def test_prompts_alone_are_enough_with_samples(files: Files, tmp_path: Path) -> None:
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text("".join(json.dumps({"prompt": row["prompt"]}) + "\n" for row in files.rows[:20]))
    words = [*files.words[:-1], str(prompts)]
    assert "prompts alone" in refused(*words)["message"]
    found = json.loads(call(*words, "--samples", 2, "--max-response-tokens", 4, "--json").stdout)["sets"]
    assert found.keys() == {"on_policy/policy", "on_policy/reference"}
    assert found["on_policy/policy"]["spearman_within_prompt"] is None  # from four samples on


def test_the_table_is_on_stdout_and_progress_on_stderr(files: Files) -> None:
    told = call(*files.words)
    assert "implicit (DPO) against explicit reward" in told.stdout
    assert "calibration against the labels" in told.stdout
    assert "kept 60 of 60" in told.stderr
    assert all(len(line) <= 100 for line in told.stdout.splitlines())
    quiet = call(*files.words, "--quiet")
    assert (quiet.stdout, quiet.stderr) == ("", "")


def test_what_is_left_out_is_counted(files: Files, tmp_path: Path) -> None:
    data = tmp_path / "pairs.jsonl"
    rows = [*files.rows[:40], files.rows[0] | {"chosen": "hi " * 80}, {"prompt": "hi", "chosen": "", "rejected": "hi"}]
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    words = [*files.words[:-1], str(data)]
    assert "empty" in refused(*words)["message"]
    told = call(*words, "--drop-invalid")
    assert "kept 40 of 41; dropped 1 over_length_pair" in told.stderr


# --- refusals ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "where"),
    [(("--beta", 0), "--beta"), (("--beta", "nan"), "--beta"), (("--samples", 1), "--samples"),
     (("--samples", -2), "--samples"), (("--batch-size", 0), "--batch-size"),
     (("--max-response-tokens", 0), "--max-response-tokens")],
)  # fmt: skip
def test_numbers_that_make_no_sense_are_refused(files: Files, words: tuple[Any, ...], where: str) -> None:
    assert refused(*files.words, *words)["where"] == where


def test_models_that_are_none_are_refused(files: Files, tmp_path: Path) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    assert "config.json" in refused(*files.words, "--policy", empty)["message"]
    (empty / "config.json").write_text("{}")
    assert "safetensors" in refused(*files.words, "--reference", empty)["message"]
    (empty / "model.safetensors").write_bytes(b"\x08\x00\x00\x00\x00\x00\x00\x00not json")
    assert refused(*files.words, "--reward-model", empty)["where"] == "--reward-model"
    headless = refused(*files.words, "--reward-model", files.root / "policy")
    assert "score.weight" in headless["message"]
    assert "same weights" in refused(*files.words, "--policy", files.root / "reference")["message"]


def test_another_tokenizer_is_refused(files: Files, tmp_path: Path) -> None:
    import shutil

    other = shutil.copytree(files.root / "reference", tmp_path / "other")
    settings = json.loads((other / "tokenizer.json").read_text())
    settings["model"]["vocab"] = {
        word: settings["model"]["vocab"][swap]
        for word, swap in zip(settings["model"]["vocab"], [*list(settings["model"]["vocab"])[:-2],
                              *reversed(list(settings["model"]["vocab"])[-2:])], strict=True)
    }  # fmt: skip
    (other / "tokenizer.json").write_text(json.dumps(settings))
    found = refused(*files.words, "--reference", other)
    assert found["where"] == "--reference"
    assert "tokenizer" in found["message"]


def test_broken_data_are_refused_before_torch_is_imported(files: Files, tmp_path: Path) -> None:
    broken = tmp_path / "broken.jsonl"
    broken.write_text('{"prompt": "hi", "chosen": 3, "rejected": "hi"}\n')
    words = [*files.words[:-1], str(broken)]
    script = (
        "import sys\nfrom click.testing import CliRunner\nfrom workbench.cli import main\n"
        f"for words in ({words!r}, {[*files.words, '--beta', '-1']!r}):\n"
        "    found = CliRunner().invoke(main, ['agree', *words])\n"
        "    assert found.exit_code == 2, found.output\n"
        "sys.exit('torch' in sys.modules)\n"
    )
    done = subprocess.run(
        [bench.PYTHON, "-c", script], env=bench.environment(), capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


def test_few_pairs_give_no_calibration_and_say_why_there_is_no_slope(files: Files) -> None:
    one = json.loads(call(*files.words, "--limit", 12, "--json").stdout)["sets"]["pairs"]
    assert one["calibration"] is None
    assert one["agreement"]["n"] == 12
    more = json.loads(call(*files.words, "--limit", 32, "--json").stdout)["sets"]["pairs"]
    assert more["calibration"]["implicit_ece"]["value"] is not None
    assert all(bucket["agreement"]["value"] is None for bucket in one["by_length"])
