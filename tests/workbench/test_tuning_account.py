"""What a tuning is charged for in the certificate, and what `compare --tuned` holds against its values."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

from pipelines.caveats import warnings
from pipelines.sources import resolve_origin
from pipelines.tune import study_name, with_tuning
from pipelines.tune_graph import trial_comparison, trial_graph
from pipelines.tuned import with_tuned
from tests.workbench.test_tuning_choice import result, trial
from workbench.config import Comparison, load_config
from workbench.errors import ConfigError
from workbench.match_facts import Side
from workbench.match_tuning import Tuning, same_tuning
from workbench.results_tuning import Budgeted, TunedArm, TunedObjective, TuningResults, ledger_of
from workbench.sides import with_tuning as side_with_tuning
from workbench.store import Store
from workbench.tuned_blocks import behind, sources, untuned
from workbench.tuning_spaces import upstream_digest
from workbench.types import Cost

SECONDS = Tuning(
    trials=9, spent=Cost(cpu_s=700.0), budget="600 seconds", rule="tpe", amount=600.0, used=640.0, largest=70.0
)
TRIALS = Tuning(trials=20, spent=Cost(cpu_s=60.0), budget="20 trials", rule="tpe")
ARMS = "arms={ppo: {updates: 30}, dpo: {}, best_of_n: {n: 4}, implicit: {kind: best_of_n, n: 4, reward: dpo}}"


def test_a_search_that_took_more_than_its_budget_fails() -> None:
    more = dataclasses.replace(SECONDS, trials=31, used=665.0)
    assert same_tuning({"ppo": SECONDS, "dpo": more})[0] is True
    ok, told = same_tuning({"ppo": dataclasses.replace(SECONDS, used=2000.0), "dpo": SECONDS})
    assert ok is False
    assert "ppo took 2000 of 600 seconds" in told
    ok, told = same_tuning({"ppo": dataclasses.replace(SECONDS, used=None), "dpo": SECONDS})
    assert ok is False
    assert "not recorded for ppo" in told


def test_a_tuned_reward_counts_for_the_arms_on_it_unless_it_is_declared() -> None:
    on_reward = dataclasses.replace(TRIALS, behind={"reward_model": TRIALS})
    assert same_tuning({"ppo": on_reward, "best_of_n": on_reward})[0] is True  # both stand on it
    ok, told = same_tuning({"ppo": on_reward, "dpo": TRIALS})
    assert ok is False
    assert "40 trials for ppo" in told
    assert "tuning.declared" in told
    declared = dataclasses.replace(TRIALS, declared={"reward_model": TRIALS})
    ok, told = same_tuning({"ppo": declared, "dpo": TRIALS})
    assert ok is True
    assert "DECLARED, not matched: 20 trials of reward_model behind ppo" in told
    over = dataclasses.replace(SECONDS, behind={"reward_model": dataclasses.replace(SECONDS, used=900.0)})
    assert "reward_model took 900" in same_tuning({"ppo": over, "best_of_n": over})[1]


def arm(**options: Any) -> TunedArm:
    return result({0: trial(0.0, key="a"), 1: trial(0.5, key="b", cpu_s=25.0)}, {}, repeats={"seeds": 0}, **options)


def tuned(comparison: Comparison, *labels: str, **more: Any) -> TuningResults:
    arms = {label: arm() for label in labels}
    given: dict[str, Any] = {
        "study": "t-1", "comparison": "smoke", "storage": "x", "rule": "tpe", "seeds": [1000],
        "objective": TunedObjective(metric="proxy_reward", judge=None, max_kl=None, prompts=40, oracle=False),
        "budget": Budgeted(unit="seconds", amount=30), "upstream": upstream_digest(comparison), "arms": arms,
        "untuned": untuned(comparison, arms),
    }  # fmt: skip
    return TuningResults(schema=1, **(given | more))


def test_the_ledger_has_what_was_measured_and_what_stands_on_what() -> None:
    comparison = load_config(Path("smoke"), [ARMS])
    assert sources(comparison, "implicit") == ["dpo"]
    assert behind(comparison, {"dpo", "reward_model"}) == {
        "ppo": ["reward_model"], "best_of_n": ["reward_model"], "implicit": ["dpo"],
    }  # fmt: skip
    ledger = ledger_of(tuned(comparison, "dpo", "implicit"))
    assert (ledger.arms["dpo"].used, ledger.arms["dpo"].largest) == (35.0, 25.0)
    ledger = ledger.model_copy(update={"behind": {"implicit": ["dpo"]}})
    own = side_with_tuning(Side(label="implicit", kind="best_of_n"), ledger).tuning
    assert own is not None
    assert (own.account, own.behind["dpo"].trials) == ("2 x 30 seconds", 2)


def written(found: TuningResults, home: Path) -> str:
    path = home / "tuning.json"
    path.write_text(found.to_json())
    return str(path)


def test_compare_refuses_values_that_were_found_with_other_settings_or_by_its_judge(tmp_path: Path) -> None:
    comparison = load_config(Path("smoke"), [ARMS])
    study = written(tuned(comparison, "dpo"), tmp_path)
    again, ledger = with_tuned(comparison, study, tmp_path)
    assert again.arms["dpo"].model_dump()["beta"] == pytest.approx(0.2)
    assert ledger.warnings == []
    with_tuned(load_config(Path("smoke"), [ARMS, "arms.dpo.beta=0.9"]), study, tmp_path)  # it was varied
    for changed in ("arms.dpo.epochs=7", "evaluation.max_response_tokens=20", "reward_models.main.epochs=9"):
        other = load_config(Path("smoke"), [ARMS, changed])
        with pytest.raises(ConfigError, match=changed.partition("=")[0].replace(".", r"\.")):
            with_tuned(other, study, tmp_path)
    with pytest.raises(ConfigError, match=r"chosen by 'proxy', which is in evaluation\.judges"):
        with_tuned(load_config(Path("smoke"), [ARMS, "evaluation.judges=[proxy]"]), study, tmp_path)
    old = written(tuned(comparison, "dpo", untuned=None), tmp_path)
    assert "older version" in with_tuned(comparison, old, tmp_path)[1].warnings[-1]


def test_ppo_is_held_to_the_updates_that_it_was_tuned_with(tmp_path: Path) -> None:
    arms = {"ppo": arm()}
    comparison = load_config(Path("smoke"), [ARMS])
    longer = load_config(Path("smoke"), [ARMS, "arms.ppo.updates=400"])
    now, then = untuned(longer, arms), untuned(comparison, arms)
    assert [place for place in then if now[place] != then[place]] == ["arms.ppo.updates"]


def test_warnings_of_a_tuning_and_what_is_not_feasible_reach_the_results() -> None:
    comparison = load_config(Path("smoke"), [ARMS])
    passed = arm(objective={"max_kl": 0.5})
    found = tuned(comparison, "dpo", arms={"dpo": passed}, warnings=["dpo: no setting kept within KL 0.5"])
    ledger = ledger_of(found)
    assert ledger.arms["dpo"].feasible is False
    assert "Tuning: dpo: no setting kept within KL 0.5" in warnings(comparison, {}, {}, ledger)
    nothing = ledger_of(tuned(comparison, "dpo", arms={"dpo": passed.model_copy(update={"best": None})}))
    assert nothing.arms["dpo"].feasible is None
    assert any("dpo: no trial was completed" in one for one in warnings(comparison, {}, {}, nothing))


def test_a_config_without_gold_is_told_what_to_do_and_may_tune_its_reward_model() -> None:
    comparison = load_config(Path("smoke"), ["evaluation.judges=[proxy]"])
    assert comparison.tuning is None
    with pytest.raises(ConfigError, match=r"another one into evaluation\.judges in its place, or choose by another"):
        with_tuning(comparison, None, ("all",))
    alone = with_tuning(comparison, None, ("reward_model",))
    assert alone.tuning is not None
    # A worker reads it from its dump.
    assert Comparison.model_validate(alone.model_dump(mode="json", exclude_unset=True)).tuning == alone.tuning


def test_what_is_declared_must_be_there_and_names_no_other_study() -> None:
    with pytest.raises(ConfigError, match="got 'mian', expected one of"):
        load_config(Path("smoke"), ["tuning={declared: [mian]}"])
    plain, declared = (
        load_config(Path("smoke"), [f"tuning={{budget: {{trials: 2}}, declared: {names}}}"])
        for names in ("[]", "[reward_model]")
    )
    assert study_name(plain) == study_name(declared)


def test_the_judge_of_the_objective_is_read_checked_and_asked(tmp_path: Path) -> None:
    folder = tmp_path / "judge"
    folder.mkdir()
    config = folder / "config.json"
    config.write_text(json.dumps({"max_position_embeddings": 64}))
    comparison = load_config(
        Path("smoke"),
        [f"judges={{other: {{kind: reward_model, folder: {folder}}}}}",
         "tuning={objective: {metric: win_rate, judge: other}}"],
    )  # fmt: skip
    store = Store(tmp_path / "home")
    origin = resolve_origin(comparison, store, tuning=True)
    assert set(origin.judges) == {"other"}
    assert resolve_origin(comparison, store).judges == {}  # compare does not ask it
    assert comparison.tuning is not None
    graph = trial_graph(trial_comparison(comparison, "dpo", {}, 7), origin, "dpo", comparison.tuning)
    (asked,) = (stage for stage in graph.stages.values() if stage.name == "judgments")
    assert asked.inputs["judge_model"] == origin.judges["other"]
    config.write_text(json.dumps({"max_position_embeddings": 8}))
    with pytest.raises(ConfigError, match=r"judges\.other\.folder: reads 8 tokens"):
        resolve_origin(comparison, store, tuning=True)
