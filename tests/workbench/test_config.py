"""The config layer: fields and their ranges, places of errors, overrides, paths, shipped configs, schema, starter."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from workbench import config as bench
from workbench.config import DPO, PPO, BestOfN, Comparison, check_paths, load_config, shipped_config, shipped_names
from workbench.errors import ConfigError, DataError, IntegrityError, WorkbenchError

ROOT = Path(__file__).parents[2]
SHARED = Path(__file__).parents[2] / "../shared"
CONFIGS = sorted((ROOT / "configs").glob("*.yaml"))

BASE = """\
name: base
model: {world: helpdesk}
data: {world: helpdesk}
arms:
  ppo: {kl_coef: 0.1}
  dpo: {beta: 0.3}
  dpo-0.1: {kind: dpo, beta: 0.1}
"""
FILES = """\
name: files
model: {policy: org/model}
data: {preferences: pairs.jsonl}
arms: {dpo: {}}
evaluation: {judges: [proxy]}
"""

Write = Callable[..., Path]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    def _write(text: str | bytes, name: str = "c.yaml") -> Path:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(text.encode() if isinstance(text, str) else text)
        return path

    return _write


def refusal(path: Path, *overrides: str) -> ConfigError:
    with pytest.raises(ConfigError) as caught:
        load_config(path, overrides)
    assert caught.value.exit_code == 2
    return caught.value


def lines(path: Path, *overrides: str) -> list[str]:
    """The error's lines, with the file's name for its path."""
    return str(refusal(path, *overrides)).replace(str(path), path.name).split("\n")


# ---- loading ----


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_every_shipped_config_loads_and_survives_its_own_dump(path: Path) -> None:
    comparison = load_config(path)
    assert comparison.name == path.stem
    dump = comparison.model_dump(mode="json")
    again = Comparison.model_validate(json.loads(json.dumps(dump)))
    assert again == comparison
    assert again.digest() == comparison.digest()


def test_the_six_configs_are_there() -> None:
    assert {"smoke", "quickstart", "study", "overoptimization", "stories", "hh"} <= set(shipped_names())


def test_quickstart_is_the_documented_default() -> None:
    comparison = load_config(shipped_config("quickstart"))
    assert list(comparison.arms) == ["ppo", "dpo", "dpo-0.1", "best_of_n", "best_of_n-implicit"]
    data, sft, reward = comparison.data, comparison.sft, comparison.reward_models["main"]
    assert (data.pairs, data.validation_pairs, data.test_pairs) == (2000, 400, 400)
    assert sft is not None
    assert (sft.steps, sft.batch_size, sft.learning_rate, sft.schedule) == (400, 64, 5e-3, "cosine")
    assert (reward.batch_size, reward.learning_rate, reward.weight_decay, reward.epochs) == (64, 2e-3, 0.05, 4)
    implicit = comparison.arms["best_of_n-implicit"]
    assert isinstance(implicit, BestOfN)
    assert (implicit.reward, implicit.n, implicit.pool, implicit.report_n) == ("dpo", 16, 64, [1, 2, 4, 8, 16])
    assert [a.temperature for a in data.annotators] == [0.8, 1, 1.2, 1, 1.5]
    assert [a.length_bias for a in data.annotators] == [0, 0.1, 0.3, 0, 0.1]
    assert [a.position_bias for a in data.annotators] == [0, 0, 0.2, 0, 0.3]
    assert [a.careless for a in data.annotators] == [0.02, 0.05, 0.05, 0.15, 0.05]


def test_study_differs_from_quickstart_in_seeds_name_and_neutral_shift_alone() -> None:
    study, quick = (load_config(shipped_config(name)).semantic() for name in ("study", "quickstart"))
    assert study.pop("seeds")["runs"] == [0, 1, 2, 3, 4]
    assert quick.pop("seeds")["runs"] == [0]
    assert (study.pop("name"), quick.pop("name")) == ("study", "quickstart")
    assert (study["evaluation"].pop("shift_temperature"), quick["evaluation"].pop("shift_temperature")) == (1.4, None)
    assert (study["resources"].pop("sft_threads"), quick["resources"].pop("sft_threads")) == (None, 2)  # last bits
    assert study == quick


def test_a_bare_name_finds_a_shipped_config_but_a_file_comes_first(
    write: Write, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    assert load_config(Path("smoke")).name == "smoke"
    assert load_config(Path("smoke.yaml")).name == "smoke"
    write(BASE, "smoke")
    assert load_config(Path("smoke")).name == "base"
    with pytest.raises(ConfigError, match="quickstart"):
        shipped_config("../configs/smoke")


def test_short_forms_and_defaults_that_depend_on_other_sections(write: Write) -> None:
    world = load_config(write(BASE + "seeds: [3, 4]\nreward_models:\n  main:\nevaluation:\n"))
    assert world.seeds.runs == [3, 4]
    assert world.gold is not None
    assert world.gold.world
    assert world.sft is not None
    assert world.sft.corpus == "world"
    assert world.evaluation.prompts == 256
    assert world.proxy == "main"
    files = load_config(write(FILES))
    assert (files.gold, files.sft) == (None, None)
    chosen = load_config(write(FILES + "sft: {steps: 10}\n"))
    assert chosen.sft is not None
    assert chosen.sft.corpus == "chosen"
    assert load_config(write(FILES + "sft: none\ngold: none\n")) == files
    assert load_config(write(FILES + "sft: null\ngold: null\n")) == files
    empty = load_config(write(BASE.replace("{kl_coef: 0.1}", "")))
    assert empty.arms["ppo"] == PPO()


def test_numbers_and_booleans_follow_yaml_1_2(write: Write) -> None:
    text = BASE.replace("beta: 0.3", "beta: 1, learning_rate: 1e-5").replace("kl_coef: 0.1", "kl_coef: 1E5")
    comparison = load_config(write(text + "description: on\n"))
    dpo, ppo = comparison.arms["dpo"], comparison.arms["ppo"]
    assert isinstance(dpo, DPO)
    assert isinstance(ppo, PPO)
    assert (dpo.learning_rate, ppo.kl_coef, dpo.beta) == (1e-5, 1e5, 1.0)
    assert isinstance(dpo.beta, float)
    assert comparison.description == "on"
    assert "did you mean 'false'" in str(refusal(write(BASE + "tracking: {enabled: off}\n")))


def test_best_of_n_fills_its_report_and_pool() -> None:
    assert BestOfN(n=6).report_n == [1, 2, 4, 6]
    assert BestOfN(n=6).pool == 24
    assert BestOfN.model_validate({"n": 4, "report_n": [1, 32], "pool": None}).pool == 128
    assert PPO(learning_rate=3e-4).critic_learning_rate == 3e-4
    assert PPO.model_validate({"critic_learning_rate": None}).critic_learning_rate == 2e-4


# ---- errors with their place ----


def test_all_problems_come_at_once_each_with_its_line_and_column(write: Write) -> None:
    text = """\
name: base
model: {world: helpdesk, sise: {}}
data: {world: helpdesk, pairs: "3"}
arms:
  ppo: {kl_coef: -0.1, updates: 5.5, whiten_advantages: 1}
  dpo:
    betta: 0.3
    loss: sigmoyd
  x: {kind: pop}
  y: {}
evaluation: {top_p: 1.5, tracking: {}, temperature: .inf}
"""
    found = lines(write(text), "arms.dpo.epochs=two", "resources.worker=3")
    places = [line.split(": ")[:2] for line in found]
    assert places == [
        ["c.yaml:2:26", "model.sise"],
        ["c.yaml:3:32", "data.pairs"],
        ["c.yaml:5:18", "arms.ppo.kl_coef"],
        ["c.yaml:5:33", "arms.ppo.updates"],
        ["c.yaml:5:57", "arms.ppo.whiten_advantages"],
        ["c.yaml:7:5", "arms.dpo.betta"],
        ["c.yaml:8:11", "arms.dpo.loss"],
        ["c.yaml:9:13", "arms.x.kind"],
        ["c.yaml:10:3", "arms.y"],
        ["c.yaml:11:21", "evaluation.top_p"],
        ["c.yaml:11:26", "evaluation.tracking"],
        ["c.yaml:11:53", "evaluation.temperature"],
        ["--set 1", "arms.dpo.epochs=two"],
        ["--set 2", "resources.worker=3"],
    ]
    said = "\n".join(found)
    for words in (
        "unknown field, did you mean 'size'?",
        "got the text '3', expected a whole number; remove the quotes",
        "got -0.1, expected at least 0",
        "got 5.5, expected a whole number",
        "got 1, expected true or false",
        "unknown field, did you mean 'beta'?",
        "got the text 'sigmoyd', expected 'sigmoid', did you mean 'sigmoid'?",
        "got the text 'pop', expected one of ppo, rloo, grpo, dpo, best_of_n, did you mean 'ppo'?",
        "arms.y: no kind, expected `kind: ` and one of ppo, rloo, grpo, dpo, best_of_n",
        "got 1.5, expected at most 1",
        "tracking belongs to the top level",
        "got inf, expected a finite number",
        "arms.dpo.epochs: got the text 'two', expected a number",
        "resources.worker: unknown field, did you mean 'workers'?",
    ):
        assert words in said


def test_where_is_the_first_place_and_is_not_repeated_in_the_message(write: Write) -> None:
    path = write(BASE + "nam: x\n")
    error = refusal(path)
    assert error.where == f"{path}:8:1"
    assert error.message == "nam: unknown field, did you mean 'name'?"


def test_missing_sections_are_named_with_what_they_are(write: Write) -> None:
    found = lines(write("name: x\n"))
    assert [line.split(":")[3].strip() for line in found] == ["model", "data", "arms"]
    assert all("missing, expected" in line for line in found)


def test_a_duplicate_key_is_refused_with_both_positions(write: Write) -> None:
    found = lines(write(BASE + "  ppo: {}\nname: again\n"))
    assert found == [
        "c.yaml:8:3: arms.ppo: duplicate key: first at line 5, column 3, again here; keep one of them",
        "c.yaml:9:1: name: duplicate key: first at line 1, column 1, again here; keep one of them",
    ]


@pytest.mark.parametrize(
    ("content", "place", "words"),
    [
        ("", "c.yaml", "empty"),
        ("# only a comment\n", "c.yaml", "empty"),
        ("[1, 2]\n", "c.yaml:1:1", "expected a mapping"),
        ("just words\n", "c.yaml:1:1", "expected a mapping"),
        ("name: x\n\tmodel: y\n", "c.yaml:2:1", "cannot be read as YAML"),
        ("name: [x\n", "c.yaml:2:1", "cannot be read as YAML"),
        ("name: x\n---\nname: y\n", "c.yaml:2:1", "cannot be read as YAML"),
        (b"name: x\nmodel: \xff\xfe\n", "c.yaml:2:8", "byte 15 (0xff) is not UTF-8"),
        ("name: x\nmodel: \x00y\n", "c.yaml:2:8", "U+0000"),
        ("a: " + "[" * 5000 + "\n", "c.yaml:1:*", "nested too deeply"),
        ('name: "\\U00110000"\n', "c.yaml:1:10", "cannot be read as YAML"),
        ("a:\n" + "".join(f"  k{i}: 1\n" for i in range(20_000)), "c.yaml:10000:*", "more than 20000 values"),
        ("a: &x {b: *x}\n", "c.yaml:1:4", "nested more than"),
        ("a: *nope\n", "c.yaml:1:4", "nope"),
        (b"# " + b"x" * 1_000_001, "c.yaml", "larger than"),
    ],
)
def test_a_file_that_is_no_config_says_why(write: Write, content: str | bytes, place: str, words: str) -> None:
    path = write(content)
    error = refusal(path)
    assert words in error.message
    where = (error.where or "").replace(str(path), path.name)
    assert where == place or (place.endswith("*") and where.startswith(place[:-1]))


@settings(max_examples=60, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_whatever_is_in_the_file_the_error_is_ours(write: Write, data: st.DataObject) -> None:
    text = (ROOT / "configs/overoptimization.yaml").read_text()
    junk = st.sampled_from(
        ["*", "&a ", "!x ", "!!int ", "- ", "? ", ": ", "[", "}", '"', "\t", "\x1b", "\ud7ff", "|", "%", "0x", "é"]
    )
    for _ in range(data.draw(st.integers(1, 4))):
        position = data.draw(st.integers(0, len(text)))
        text = (
            text[:position]
            + data.draw(st.one_of(junk, st.text(max_size=4)))
            + text[position + data.draw(st.integers(0, 9)) :]
        )
    override = data.draw(
        st.one_of(st.just("name=x"), st.text(max_size=12), st.text(max_size=8).map("arms.dpo.beta=".__add__))
    )
    try:
        load_config(write(text.encode("utf-8", "surrogatepass")), [override])
        said = ""
    except ConfigError as error:
        said = str(error)
    assert all(line.isprintable() for line in said.split("\n"))


def test_missing_file_directory_and_unreadable_file(write: Write, tmp_path: Path) -> None:
    assert "no such file" in str(refusal(tmp_path / "nope.yaml"))
    assert "did you mean 'quickstart'" in str(refusal(Path("quikstart")))
    assert "directory" in str(refusal(tmp_path))
    locked = write(BASE)
    locked.chmod(0)
    if os.access(locked, os.R_OK):
        pytest.skip("this user reads files whatever their permissions")
    assert "cannot be read" in str(refusal(locked))


def test_tags_are_refused_and_run_nothing(write: Write, tmp_path: Path) -> None:
    marker = tmp_path / "ran"
    text = BASE.replace("base", f"!!python/object/apply:os.mkdir ['{marker}']", 1) + "description: !secret x\n"
    found = lines(write(text))
    assert [line.split(": ")[0] for line in found] == ["c.yaml:1:7", "c.yaml:8:14"]
    assert all("tag" in line for line in found)
    assert not marker.exists()


def test_an_alias_bomb_is_bounded(write: Write) -> None:
    bomb = "a0: &a0 [x, x]\n" + "".join(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]\n" for i in range(1, 12))
    assert "aliases" in str(refusal(write(bomb)))


def test_aliases_work_and_merge_keys_are_explained(write: Write) -> None:
    text = BASE.replace("{beta: 0.3}", "&d {kind: dpo, beta: 0.3}")
    assert load_config(write(text + "  other: *d\n")).arms["other"] == DPO(beta=0.3)
    assert "merge keys" in str(refusal(write(text + "  other: {<<: *d, beta: 1}\n")))


def test_control_characters_of_the_file_never_reach_the_terminal(write: Write) -> None:
    error = refusal(write(BASE + 'description: ["\\e[31m"]\n"\\e[32mx": 1\n'), "na\x1bme=1")
    assert "\x1b" not in str(error)


@pytest.mark.parametrize(
    ("extra", "words"),
    [
        ("model: {world: helpdesk, policy: x}", "model: got policy and world, expected exactly one of"),
        ("model: {}", "model: got none of them, expected exactly one of"),
        ("data: {}", "data: got none of them, expected exactly one of world, preferences, simulate"),
        ("data: {world: helpdesk, limit: 3}", "data.limit: has no effect with data.world"),
        ("data: {preferences: x.jsonl, pairs: 3}", "data.pairs: has no effect with data.preferences"),
        ("data: {world: helpdesk, labels_per_pair: 6}", "data.labels_per_pair: got 6, expected at most"),
        ("data: {world: helpdesk, annotators: [{name: a}, {name: a}]}", "data.annotators.1.name: got 'a' a second"),
        ("gold: none", "gold: got none, but data.world's annotators label by gold"),
        ("gold: {world: true, python: 'a:b'}", "gold: got python and world, expected exactly one"),
        ("gold: {python: a.b}", "gold.python: got the text 'a.b', expected 'module:function'"),
        ("sft: none", "sft: got none, but model.world starts untrained"),
        ("sft: {corpus: chosen}", "sft.corpus: got 'chosen', which needs data.preferences"),
        ("reward_models: {}", "reward_models: got a mapping ({}), expected at least 1"),
        ("reward_models: {dpo: {}, main: {}}", "arms.dpo: 'dpo' is a reward model's name as well"),
        ("reward_models: {other: {}}", "arms.ppo.reward: got 'main', expected a reward model (other)"),
        ("arms: {}", "arms: got a mapping ({}), expected at least 1"),
        ("arms: {sft: {kind: dpo}}", "arms.sft: 'sft' is reserved"),
        ("arms: {A b: {kind: dpo}}", "arms.A b: got the text 'A b', expected lower-case letters"),
        ("arms: {ppo: {batch_size: 5}}", "arms.ppo.batch_size: got 5 responses and 2 minibatches"),
        ("arms: {rloo: {generations_per_prompt: 1}}", "arms.rloo.generations_per_prompt: got 1, expected at least 2"),
        (
            "arms: {rloo: {batch_size: 6, minibatches: 3}}",
            "arms.rloo.batch_size: got 6 responses and 4 generations per",
        ),
        ("arms: {grpo: {batch_size: 8, minibatches: 3}}", "arms.grpo.batch_size: got 8 responses and 3 minibatches"),
        ("arms: {grpo: {reward: dpo}, dpo: {}}", "an arm's implicit reward cannot be trained on with grpo"),
        ("arms: {grpo: {reward: other}}", "arms.grpo.reward: got 'other', expected a reward model (main)"),
        ("arms: {grpo: {loss: bnpo}}", "arms.grpo.loss: got the text 'bnpo', expected 'dapo', 'grpo' or 'dr_grpo'"),
        ("arms: {rloo: {value_clip: 0.2}}", "arms.rloo.value_clip: unknown field"),
        ("arms: {ppo: {updates: 6}}", "arms.ppo.critic_warmup_updates: got 6, expected less than updates (6)"),
        ("arms: {ppo: {reward: a}, dpo: {}, a: {kind: best_of_n}}", "got 'a', expected a reward model (main) or a dpo"),
        ("arms: {dpo: {labels: dpo}}", "arms.dpo.labels: got 'dpo', expected given, a reward model (main) or another"),
        ("arms: {dpo: {labels: other}}", "arms.dpo.labels: got 'other', expected given, a reward model (main) or"),
        ("arms: {dpo: {labels: ppo}, ppo: {}}", "arms.dpo.labels: got 'ppo', expected given, a reward model (main) or"),
        ("arms: {dpo: {labels: b}, b: {kind: dpo, labels: dpo}}", "but the labels go round: dpo -> b -> dpo"),
        (
            "arms: {dpo: {labels_rule: flip}}",
            "arms.dpo.labels_rule: got the text 'flip', expected 'sample', 'argmax' or 'soft'",
        ),
        ("reward_models: {given: {}, main: {}}", "reward_models.given: 'given' stands for the data's own labels"),
        ("arms: {best_of_n: {reward: dpo}}", "arms.best_of_n.reward: got 'dpo', expected a reward model (main)"),
        ("arms: {best_of_n: {n: 16, pool: 63}}", "arms.best_of_n.pool: got 63, expected at least 4 times"),
        ("arms: {ppo: 3}", "arms.ppo: got 3, expected a mapping"),
        ("seeds: [1, 1]", "seeds.runs: got [1, 1], expected different seeds"),
        ("selection: {rule: best}\nevaluation: {judges: [proxy]}", "the selector must not judge what it selected"),
        ("evaluation: {judges: [glod]}", "got 'glod', expected one of gold, proxy; other judges"),
        ("judges: {a: {kind: lllm}}", "judges.a.kind: got the text 'lllm', expected one of llm, reward_model, human"),
        (
            "judges: {a: {url: 'http://x/v1'}}",
            "judges.a: no kind, expected `kind: ` and one of llm, reward_model, human",
        ),
        ("judges: {a: {kind: human, verdict: x.csv}}", "judges.a.verdict: unknown"),
        ("judges: {gold: {kind: human, verdicts: x.csv}}", "judges.gold: this name is reserved"),
        ("judges: {a: {kind: llm, url: 'ftp://x', model: m}}", "judges.a.url: expected http://HOST"),
        ("judges: {a: {kind: llm, url: 'http://u:p@x/v1', model: m}}", "judges.a.url: holds a password"),
        ("judges: {a: {kind: llm, url: 'http://x/v1', model: m, max_usd: 1.0}}", "judges.a.max_usd: needs price"),
        ("selection: {rule: best}\nevaluation: {trajectory_prompts: 0}", "evaluation.trajectory_prompts: got 0"),
        ("model: {policy: org/m, trust_remote_code: true, revision: main}", "full commit (40 hex digits)"),
        ("name: Bad Name", "name: got the text 'Bad Name', expected lower-case letters"),
        ("tracking: {uri: 'http://me:hunter2@host'}", "tracking.uri: holds a password"),
    ],
)
def test_sections_must_fit_each_other(write: Write, extra: str, words: str) -> None:
    replaced = {line.split(":")[0] for line in extra.splitlines()}
    blocks = re.findall(r"^(\w+):.*\n(?: .*\n)*", BASE, re.M)
    kept = [re.search(rf"^{name}:.*\n(?: .*\n)*", BASE, re.M) for name in blocks if name not in replaced]
    text = "".join(match[0] for match in kept if match) + extra + "\n"
    error = refusal(write(text))
    assert words in str(error)
    assert "hunter2" not in str(error)


def test_judging_by_gold_needs_gold(write: Write) -> None:
    found = lines(write(FILES.replace("[proxy]", "[gold]")))
    assert len(found) == 1
    assert found[0].startswith("c.yaml:5:22: evaluation.judges: got 'gold' but there is no gold")
    simulated = FILES.replace("preferences: pairs.jsonl", "simulate: {prompts: p.jsonl}")
    assert "gold: {python: 'module:function'}" in str(refusal(write(simulated)))


def test_a_comparison_built_in_python_is_checked_the_same_way() -> None:
    with pytest.raises(ValueError, match="expected exactly one of policy, world"):
        bench.Model()
    with pytest.raises(ValueError, match="kl_coef"):
        PPO.model_validate({"kl_coef": "0.1"})
    frozen = DPO()
    with pytest.raises(ValueError, match="frozen"):
        frozen.beta = 3.0


# ---- overrides ----


def test_overrides_set_fields_blocks_and_labels_with_dots(write: Write) -> None:
    path = write(BASE)
    comparison = load_config(
        path,
        [
            "arms.dpo-0.1.beta=.2",
            'arms."dpo-0.1".epochs=3',
            "arms.dpo={kind: dpo, beta: .7}",
            "arms.dpo-0.05={kind: dpo, beta: 0.05}",
            "arms.ppo.adaptive_kl.target=3",
            "evaluation.judges=[gold, proxy]",
            "data.annotators=[{temperature: 1}, {temperature: 2}]",
            "data.annotators.1.temperature=4",
            "seeds=[5, 6]",
            "seeds.data=9",
            "seeds.runs.0=7",
            "description='a = b'",
        ],
    )
    assert comparison.arms["dpo-0.1"] == DPO(beta=0.2, epochs=3)
    assert comparison.arms["dpo"] == DPO(beta=0.7)
    assert comparison.arms["dpo-0.05"] == DPO(beta=0.05)
    ppo = comparison.arms["ppo"]
    assert isinstance(ppo, PPO)
    assert ppo.adaptive_kl is not None
    assert (ppo.kl_coef, ppo.adaptive_kl.target) == (0.1, 3.0)
    assert comparison.evaluation.judges == ["gold", "proxy"]
    assert [(a.name, a.temperature) for a in comparison.data.annotators] == [("annotator-1", 1), ("annotator-2", 4)]
    assert (comparison.seeds.runs, comparison.seeds.data) == ([7, 6], 9)
    assert comparison.description == "a = b"
    assert load_config(path, ["name=x", "name=y"]).name == "y"
    opened = load_config(write(FILES + "sft: none\n"), ["sft.steps=3"])
    assert opened.sft is not None
    assert opened.sft.steps == 3


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("arms.dop.beta=1", "arms: there is no 'dop', expected one of ppo, dpo, dpo-0.1, did you mean 'dpo'?"),
        ("arms.dpo.bet=1", "arms.dpo.bet: unknown field, did you mean 'beta'?"),
        ("evalution.prompts=1", "evalution: unknown field, did you mean 'evaluation'?"),
        ("arms.dpo.beta=-1", "arms.dpo.beta: got -1, expected more than 0"),
        ("arms.dpo.beta.x=1", "arms.dpo.beta: got 0.3, expected a block that has 'x'"),
        ("seeds.runs.9=1", "seeds.runs: got '9', expected a position in a list of 1"),
        ("arms.dpo", "expected a dotted field name, '=' and a YAML value"),
        ("=3", "expected a dotted field name"),
        ("arms..beta=3", "expected a dotted field name"),
        ("arms.dpo={beta: 1", "arms.dpo: cannot be read as YAML"),
        ("arms.dpo={beta: 1, beta: 2}", "duplicate key"),
        ("name=!!python/name:os.system x", "tag"),
        ("name=", "name: got nothing (null), expected text"),
        ("arms.new={beta: 1}", "arms.new: no kind"),
    ],
)
def test_a_wrong_override_is_shown_whole_with_its_number(write: Write, override: str, words: str) -> None:
    found = lines(write(BASE + "seeds: [0]\n"), "description=fine", override)
    assert len(found) == 1
    assert found[0].startswith(f"--set 2: {override}: ")
    assert words in found[0]


def test_a_value_that_an_override_repairs_is_no_problem_any_more(write: Write) -> None:
    assert load_config(write(BASE.replace("beta: 0.3", "beta: -1")), ["arms.dpo.beta=1"]).arms["dpo"] == DPO(beta=1)


# ---- paths ----


def test_paths_are_relative_to_the_file_and_overrides_to_the_working_directory(
    write: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "cwd").mkdir()
    monkeypatch.chdir(tmp_path / "cwd")
    path = write(FILES, "deep/c.yaml")
    comparison = load_config(path)
    assert comparison.data.preferences == str(tmp_path / "deep/pairs.jsonl")
    assert comparison.model.policy == "org/model"  # nothing of that name beside the file: a hub id
    assert load_config(path, ["data.preferences=pairs.jsonl"]).data.preferences == str(tmp_path / "cwd/pairs.jsonl")
    (tmp_path / "deep/org/model").mkdir(parents=True)
    assert load_config(path).model.policy == str(tmp_path / "deep/org/model")
    assert load_config(path, ["model.policy=org/model"]).model.policy == "org/model"
    relative = os.path.relpath(path)
    assert load_config(Path(relative)).data.preferences == str(tmp_path / "deep/pairs.jsonl")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("org/name", "org/name"),
        ("gpt2", "gpt2"),
        ("Org/data.v1", "Org/data.v1"),
        ("./org/name", "{base}/org/name"),
        ("../x", "{parent}/x"),
        ("/abs/x", "/abs/x"),
        ("~/x", "{home}/x"),
        ("a/b.jsonl", "{base}/a/b.jsonl"),
        ("a/b.JSONL.gz", "{base}/a/b.JSONL.gz"),
        ("b.parquet", "{base}/b.parquet"),
        ("a/b/c", "{base}/a/b/c"),
    ],
)
def test_what_is_a_path_and_what_a_hub_id(write: Write, tmp_path: Path, text: str, expected: str) -> None:
    got = load_config(write(FILES.replace("pairs.jsonl", text))).data.preferences
    assert got == expected.format(base=tmp_path, parent=tmp_path.parent, home=Path.home())


def model_folder(folder: Path, *names: str, config: dict[str, Any] | None = None) -> Path:
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(config or {}))
    for name in names:
        (folder / name).write_bytes(b"x")
    return folder


def test_check_paths_passes_what_is_there(write: Write, tmp_path: Path) -> None:
    model_folder(tmp_path / "m", "model.safetensors", "pytorch_model.bin")
    write("", "pairs.jsonl")
    check_paths(load_config(write(FILES.replace("org/model", "./m"))))
    check_paths(load_config(shipped_config("smoke")))


def test_check_paths_reports_everything_that_is_missing_at_once(write: Write, tmp_path: Path) -> None:
    text = FILES.replace("org/model", "./m").replace("jsonl}", "jsonl, ood: ood.csv}")
    text += "gold: {reward_model: gold}\n"
    (tmp_path / "gold").mkdir()
    comparison = load_config(write(text))
    with pytest.raises(ConfigError) as caught:
        check_paths(comparison)
    said = str(caught.value).split("\n")
    fields = ["model.policy", "gold.reward_model", "gold.reward_model", "data.preferences", "data.ood"]
    assert [line.split(":")[0] for line in said] == fields
    assert "*.safetensors" in said[2]
    assert str(tmp_path / "ood.csv") in said[4]


def test_missing_data_alone_is_a_data_error(write: Write, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"data\.preferences: .*pairs\.jsonl: no such file"):
        check_paths(load_config(write(FILES)))
    simulated = FILES.replace("preferences: pairs.jsonl", "simulate: {prompts: p}").replace("[proxy]", "[gold]")
    comparison = load_config(write(simulated + "gold: {python: 'json:dumps'}\n"))
    with pytest.raises(DataError, match=r"data\.simulate\.prompts"):
        check_paths(comparison)
    (tmp_path / "p").mkdir()
    with pytest.raises(DataError, match="got a folder, expected a file"):
        check_paths(comparison)


def test_pickled_weights_are_refused_with_exit_code_4(write: Write, tmp_path: Path) -> None:
    model_folder(tmp_path / "m", "pytorch_model.bin")
    write("", "pairs.jsonl")
    with pytest.raises(IntegrityError, match=r"pytorch_model\.bin.*safetensors only") as caught:
        check_paths(load_config(write(FILES.replace("org/model", "./m"))))
    assert caught.value.exit_code == 4


@pytest.mark.parametrize("file", ["config.json", "tokenizer_config.json"])
def test_a_models_own_code_needs_consent(write: Write, tmp_path: Path, file: str) -> None:
    folder = model_folder(tmp_path / "m", "model.safetensors")
    (folder / file).write_text(json.dumps({"auto_map": {"AutoModel": "evil.Model"}}))
    write("", "pairs.jsonl")
    path = write(FILES.replace("org/model", "./m"))
    with pytest.raises(ConfigError, match="trust_remote_code: true"):
        check_paths(load_config(path))
    check_paths(load_config(path, ["model.trust_remote_code=true"]))


def test_the_files_of_judges_in_use_must_be_there(write: Write, tmp_path: Path) -> None:
    judges = "judges: {rm: {kind: reward_model, folder: rm}, people: {kind: human, verdicts: sheet.csv}}\n"
    unused = load_config(write(BASE + judges))
    check_paths(unused)
    assert str(tmp_path) in str(unused.judges["people"])  # relative to the file
    used = load_config(write(BASE + judges), ["evaluation.judges=[rm, people]"])
    with pytest.raises(ConfigError) as caught:
        check_paths(used)
    assert "judges.rm.folder" in str(caught.value)
    assert "workbench judge export CONFIG people FOLDER" in str(caught.value)


def test_where_a_judge_is_reached_is_in_no_digest(write: Write) -> None:
    block = "judges: {a: {kind: llm, url: 'http://x/v1', model: m}}\n"
    before = load_config(write(BASE + block))
    moved = load_config(write(BASE + block), ["judges.a.url=https://y/v1", "judges.a.concurrency=9"])
    other = load_config(write(BASE + block), ["judges.a.model=n"])
    assert before.digest() == moved.digest() != other.digest()


def test_a_gold_module_must_be_findable(write: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    comparison = load_config(write(BASE + "gold: {python: 'my_gold_scorer.sub:score'}\n"))
    with pytest.raises(ConfigError, match="no module 'my_gold_scorer'"):
        check_paths(comparison)
    write("raise RuntimeError('imported')", "my_gold_scorer.py")
    check_paths(comparison)


@pytest.mark.skipif(not SHARED.is_dir(), reason="needs the shared models and data beside the checkout")
@pytest.mark.parametrize("name", ["stories", "hh"])
def test_the_paths_of_the_configs_on_real_data_exist(name: str) -> None:
    check_paths(load_config(shipped_config(name)))


# ---- digest, schema, starter ----


def test_the_digest_sees_what_changes_results_and_nothing_else(write: Write) -> None:
    path = write(BASE)
    digest = load_config(path).digest()
    assert re.fullmatch(r"[0-9a-f]{64}", digest)
    for same in ("description=x", "tracking.uri=sqlite:///x.db", "tracking.enabled=false", "resources.workers=7"):
        assert load_config(path, [same]).digest() == digest
    for other in ("name=x", "resources.threads=2", "arms.dpo.beta=.31", "seeds.eval=1", "evaluation.prompts=8"):
        assert load_config(path, [other]).digest() != digest
    assert load_config(write(BASE.replace("beta: 0.3", "beta: 0.30, epochs: 2"))).digest() == digest


def conforms(value: Any, schema: dict[str, Any], root: dict[str, Any]) -> bool:
    """JSON schema's keywords as far as ours uses them."""
    if "$ref" in schema:
        return conforms(value, root["$defs"][schema["$ref"].rsplit("/", 1)[1]], root)
    names: dict[str, type | tuple[type, ...]] = {"object": dict, "array": list, "string": str, "boolean": bool}
    names |= {"integer": int, "number": (int, float)}
    kind = schema.get("type")
    if kind == "null":
        return value is None
    if kind and (not isinstance(value, names[kind]) or (isinstance(value, bool) and kind != "boolean")):
        return False
    checks = [
        "const" not in schema or value == schema["const"],
        "enum" not in schema or value in schema["enum"],
        "pattern" not in schema or re.search(schema["pattern"], value) is not None,
        value >= schema["minimum"] if "minimum" in schema else True,
        value > schema["exclusiveMinimum"] if "exclusiveMinimum" in schema else True,
        value <= schema["maximum"] if "maximum" in schema else True,
        value < schema["exclusiveMaximum"] if "exclusiveMaximum" in schema else True,
        "not" not in schema or not conforms(value, schema["not"], root),
        any(conforms(value, option, root) for option in schema["anyOf"]) if "anyOf" in schema else True,
        sum(conforms(value, option, root) for option in schema["oneOf"]) == 1 if "oneOf" in schema else True,
        all(conforms(value, option, root) for option in schema.get("allOf", [])),
    ]
    if isinstance(value, dict):
        known, rest = schema.get("properties", {}), schema.get("additionalProperties", True)
        checks.append(set(schema.get("required", [])) <= set(value))
        checks += [conforms(name, schema["propertyNames"], root) for name in value if "propertyNames" in schema]
        for name, item in value.items():
            inner = known.get(name, rest)
            checks.append(inner if isinstance(inner, bool) else conforms(item, inner, root))
    if isinstance(value, list) and "items" in schema:
        checks += [conforms(item, schema["items"], root) for item in value]
    return all(checks)


def as_file(path: Path) -> Any:
    """A config as an editor reads it (YAML 1.1's `1e-3` put right)."""
    return yaml.safe_load(re.sub(r"\b(\d)e-(\d)", r"\1.0e-\2", path.read_text()))


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_the_schema_accepts_every_shipped_config(path: Path) -> None:
    schema = json.loads(json.dumps(bench.json_schema()))
    assert conforms(as_file(path), schema, schema)


@pytest.mark.parametrize(
    ("extra", "ok"),
    [
        ("seeds: [0, 1]", True),
        ("sft: {steps: 3}", True),
        ("reward_models: {main: {}}", True),
        ("arms: {dpo: {kind: ppo}, best_of_n: {pool: null}}", True),
        ("arms: {ppo: }", True),
        ("arms: {x: {beta: 1}}", False),
        ("arms: {x: {kind: dpo, kl_coef: 1}}", False),
        ("arms: {sft: {kind: dpo}}", False),
        ("seeds: [-1]", False),
        ("evaluation: {top_p: 2}", False),
        ("nam: x", False),
    ],
)
def test_the_schema_knows_short_forms_names_and_ranges(write: Write, extra: str, ok: bool) -> None:
    schema = bench.json_schema()
    assert conforms(as_file(write(BASE)) | yaml.safe_load(extra), schema, schema) is ok


def test_every_field_is_described() -> None:
    schema = bench.json_schema()
    for name, block in [("Comparison", schema), *schema["$defs"].items()]:
        for field, info in block["properties"].items():
            # Pydantic leaves out a description that repeats the section's own.
            section = schema["$defs"].get(info.get("$ref", "").rsplit("/", 1)[-1], {})
            assert info.get("description") or section.get("description"), f"{name}.{field}"


def test_the_starter_loads_and_so_does_its_own_model_block(write: Write) -> None:
    starter = bench.starter_yaml()
    comparison = load_config(write(starter))
    assert {arm.kind for arm in comparison.arms.values()} == {"ppo", "dpo", "best_of_n"}
    assert comparison.data.world == "helpdesk"
    assert starter.count("#") > 40
    # What its last block tells the user to do.
    above = re.sub(r"^(model|data|gold|sft):.*\n(?:  .*\n)*", "", starter.replace("[gold]", "[proxy]"), flags=re.M)
    own = load_config(write(re.sub(r"^#(?=\w| {2}\w+:)", "", above, flags=re.M)))
    assert (own.model.policy or "").endswith("/my-model")
    assert (own.data.preferences or "").endswith("/pairs.jsonl")
    assert (own.gold, own.sft) == (None, None)


def test_nothing_heavy_is_imported_to_load_and_check_a_config() -> None:
    code = (
        "import sys; from pathlib import Path; from workbench import config\n"
        "config.check_paths(config.load_config(Path('smoke'))); config.json_schema(); config.starter_yaml()\n"
        "heavy = {'torch', 'transformers', 'mlflow', 'trl', 'datasets', 'numpy', 'scipy', 'optuna'}\n"
        "sys.exit(str(heavy & set(sys.modules) or 0) if heavy & set(sys.modules) else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_errors_of_the_config_are_workbench_errors(tmp_path: Path) -> None:
    with pytest.raises(WorkbenchError) as caught:
        load_config(tmp_path)
    assert caught.value.code == "config"
