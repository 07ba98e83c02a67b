"""From trials to a choice: KL limits, fresh seeds, the winner's curse, budgets; and the ledger in the certificate."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from workbench.config_tuning import Tuning
from workbench.errors import DataError
from workbench.match import certificate
from workbench.match_facts import Side
from workbench.match_tuning import Tuning as Spent_
from workbench.results_tuning import (
    Budgeted,
    TrialRow,
    TunedArm,
    TunedObjective,
    TuningResults,
    ledger_of,
    load_tuning,
)
from workbench.sides import with_tuning
from workbench.tuning_budget import counted
from workbench.tuning_choice import Sweep, arm_result, best_so_far, charge, finalists, order_by, ordered, orders
from workbench.tuning_figures import draw
from workbench.tuning_measure import Trial, feasible, kl_of, read_trial, score_of, write_trial
from workbench.types import Cost

PROMPTS = [f"p{number}" for number in range(40)]
SEED = 1000


def trial(
    mean: float, kl: float = 1.0, *, noise: float = 0.0, cpu_s: float = 10.0, key: str = "k", **more: Any
) -> Trial:
    """A complete trial whose mean score is exact where there is no noise."""
    spread = np.linspace(-1, 1, len(PROMPTS))
    scores = {
        prompt: mean + float(one) + noise * (place % 2)
        for place, (prompt, one) in enumerate(zip(PROMPTS, spread, strict=True))
    }
    options = {
        "status": "complete",
        "scores": scores,
        "kl": dict.fromkeys(PROMPTS, kl) | {"p0": kl + 0.1, "p1": kl - 0.1},
    }
    return Trial(**(options | {"costs": {key: Cost(cpu_s=cpu_s, tokens_trained=100)}} | more))


def rows_of(trials: dict[int, Trial], tuning: Tuning) -> list[TrialRow]:
    charged: set[str] = set()
    found = []
    for number, one in trials.items():
        complete = one.status == "complete"
        kl = kl_of({SEED: one.kl}, one.bound)
        found.append(
            TrialRow(
                number=number, state=one.status, params={"beta": 0.1 * (number + 1)},
                value=score_of({SEED: one.scores}, proportion=False) if complete else None, seq_kl=kl,
                feasible=complete and feasible(kl, tuning.objective.max_kl), reason=one.reason,
                spent=charge(one, charged),
            )
        )  # fmt: skip
    return found


def result(trials: dict[int, Trial], fresh: dict[tuple[int, int], Trial], **options: Any) -> TunedArm:
    tuning = Tuning(**options)
    rows = rows_of(trials, tuning)
    sweep = Sweep(label="dpo", kind="dpo", study="t/dpo", rows=rows, scores=trials, fresh=fresh, met=True)
    return arm_result(sweep, tuning, {"beta": 1.0}, [], Cost(cpu_s=5.0))


def test_the_kl_limit_goes_before_the_score() -> None:
    tuning = Tuning(objective={"max_kl": 5.0})
    rows = rows_of({0: trial(0.1), 1: trial(0.9, kl=9.0), 2: trial(0.5, kl=4.9), 3: trial(0.8, kl=6.0)}, tuning)
    assert [row.number for row in ordered(rows, 5.0)] == [2, 0, 3, 1]
    assert [row.feasible for row in rows] == [True, False, True, False]


def test_the_default_is_always_repeated_and_equal_settings_once() -> None:
    tuning = Tuning(repeats={"top": 2, "seeds": 1})
    rows = rows_of({0: trial(0.1), 1: trial(0.9), 2: trial(0.8), 3: trial(0.7)}, tuning)
    twin = rows[1].model_copy(update={"number": 4})
    assert [row.number for row in finalists([*rows, twin], tuning)] == [1, 2, 0]
    assert finalists(rows, Tuning(repeats={"seeds": 0})) == []
    nobody = rows_of({0: Trial(status="failed", reason="nan")}, tuning)
    assert finalists(nobody, tuning) == []


def test_fresh_seeds_choose_and_measure_what_the_search_flattered() -> None:
    trials = {0: trial(0.0), 1: trial(1.0), 2: trial(0.9)}
    means = {0: (0.0, 0.1), 1: (0.3, 0.5), 2: (0.8, 0.7)}  # trial 1 was lucky in the search
    fresh = {(n, SEED + 1 + s): trial(mean, noise=0.02) for n, pair in means.items() for s, mean in enumerate(pair)}
    found = result(trials, fresh)
    assert found.best is not None
    assert found.best.number == 2
    assert found.best.value.value == pytest.approx(0.76)
    assert found.best.search_value.value == pytest.approx(0.9)
    assert found.winners_curse is not None
    assert found.winners_curse.value == pytest.approx(1.0 - 0.41)  # of trial 1, which won the search
    assert found.gain is not None
    assert found.gain.value == pytest.approx(0.7)
    assert found.default is not None
    assert found.default.number == 0
    assert found.winners_curse.low is not None
    assert found.winners_curse.low < 0.59 < (found.winners_curse.high or 0)


def test_a_choice_is_scored_on_the_seed_that_had_no_part_in_it() -> None:
    trials = {0: trial(0.0), 1: trial(1.0), 2: trial(0.9)}
    means = {0: (0.0, 0.0), 1: (0.9, 0.1), 2: (0.1, 0.8)}  # two lucky draws of settings that are as good
    fresh = {(n, SEED + 1 + s): trial(mean) for n, pair in means.items() for s, mean in enumerate(pair)}
    found = result(trials, fresh)
    assert found.best is not None
    assert found.gain is not None
    assert (found.best.number, found.best.selected) == (1, False)
    assert found.best.held_out == {str(SEED + 1): 2, str(SEED + 2): 1}
    assert found.best.value.value == pytest.approx(0.1)  # not the 0.5 by which 1 was chosen
    assert found.gain.value == pytest.approx(0.1)


def test_one_fresh_seed_that_chooses_is_marked_unless_there_is_no_choice() -> None:
    trials = {0: trial(0.0), 1: trial(1.0)}
    fresh = {(n, SEED + 1): trial(mean) for n, mean in enumerate((0.0, 0.4))}
    two = result(trials, fresh, repeats={"top": 2, "seeds": 1})
    assert two.best is not None
    assert (two.best.selected, two.best.value.value) == (True, pytest.approx(0.4))
    one = result({0: trials[0]}, fresh, repeats={"top": 1, "seeds": 1})
    assert one.best is not None
    assert (one.best.selected, one.best.held_out) == (False, {str(SEED + 1): 0})
    none = result(trials, {}, repeats={"seeds": 0})
    assert none.best is not None
    assert none.best.selected


def test_a_finalist_that_diverges_on_a_fresh_seed_is_not_chosen() -> None:
    trials = {0: trial(0.0), 1: trial(1.0)}
    fresh = {(0, SEED + 1): trial(0.0), (1, SEED + 1): Trial(status="failed", reason="nan in the loss")}
    found = result(trials, fresh, repeats={"top": 1, "seeds": 1})
    assert found.best is not None
    assert found.best.number == 0
    assert [one.reason for one in found.repeated] == [f"seed {SEED + 1}: nan in the loss", None]


def test_without_feasible_or_complete_trials_it_says_so() -> None:
    over = result({0: trial(0.0, kl=9.0), 1: trial(0.5, kl=7.0)}, {}, objective={"max_kl": 5.0}, repeats={"seeds": 0})
    assert over.best is not None
    assert (over.best.number, over.best.feasible) == (1, False)
    assert over.best_so_far == []
    nothing = result({0: Trial(status="failed", reason="nan"), 1: Trial(status="pruned", reason="median")}, {})
    assert nothing.best is None
    assert (nothing.failed, nothing.pruned, nothing.trials) == (1, 1, 2)


def test_stages_that_trials_share_are_charged_once_and_failures_are_charged() -> None:
    pool = {"pool": Cost(cpu_s=50.0)}
    trials = {
        0: trial(0.0, costs={"a": Cost(cpu_s=1.0)} | pool),
        1: trial(0.5, costs={"b": Cost(cpu_s=1.0)} | pool),
        2: Trial(status="failed", reason="nan", costs={"c": Cost(cpu_s=7.0)}),
    }
    found = result(trials, {}, repeats={"seeds": 0})
    assert [row.spent.cpu_s for row in found.rows] == [51.0, 1.0, 7.0]
    assert found.spent_trials.cpu_s == 59.0
    assert found.spent.cpu_s == 64.0
    assert [(one.trials, one.seconds, one.number) for one in found.best_so_far] == [(1, 51, 0), (2, 52, 1), (3, 59, 1)]


def test_the_order_of_arms_follows_the_budget() -> None:
    slow = result({0: trial(0.0, cpu_s=10.0), 1: trial(0.9, cpu_s=10.0, key="l")}, {}, repeats={"seeds": 0})
    fast = result({0: trial(0.5, cpu_s=2.0), 1: trial(0.4, cpu_s=2.0, key="l")}, {}, repeats={"seeds": 0})
    by_trials, by_seconds = orders({"slow": slow, "fast": fast})
    assert [(one.at, one.order) for one in by_trials] == [(1, ["fast", "slow"]), (2, ["slow", "fast"])]
    assert by_seconds == []  # the slow arm has no trial within what the fast one spent in all
    assert order_by({"slow": slow, "fast": fast}, "best") == ["slow", "fast"]
    assert order_by({"slow": slow, "fast": fast}, "default") == []
    assert best_so_far([], None) == []


def test_scores_of_a_share_stay_within_it_and_unscored_prompts_are_counted() -> None:
    wins: dict[str, float | None] = dict.fromkeys(PROMPTS, 1.0) | {"p0": None}
    found = score_of({SEED: wins}, proportion=True)
    assert (found.value, found.high, found.n, found.n_unscored) == (1.0, 1.0, 39, 1)
    assert found.low is not None
    assert found.low < 1


def tuning_results(**arms: TunedArm) -> TuningResults:
    objective = TunedObjective(metric="gold_reward", judge=None, max_kl=None, prompts=40, oracle=True)
    return TuningResults(
        schema=1, study="t-1", comparison="t", storage="x", objective=objective, rule="tpe",
        budget=Budgeted(unit="trials", amount=2), seeds=[1000], upstream="u", arms=arms,
    )  # fmt: skip


def test_the_file_survives_and_a_wrong_one_is_named(tmp_path: Path) -> None:
    found = tuning_results(dpo=result({0: trial(0.0), 1: trial(0.5)}, {}, repeats={"seeds": 0}))
    folder = tmp_path / "tuning" / "t-1"
    folder.mkdir(parents=True)
    (folder / "tuning.json").write_text(found.to_json())
    assert load_tuning(tmp_path, "t-1") == found
    assert load_tuning(tmp_path, str(folder / "tuning.json")) == found
    assert json.loads(found.to_json())["arms"]["dpo"]["best"].keys() >= {"number", "params", "value"}
    with pytest.raises(DataError, match="expected one of t-1"):
        load_tuning(tmp_path, "t-2")
    (folder / "tuning.json").write_text("{}")
    with pytest.raises(DataError, match=r"not a tuning\.json"):
        load_tuning(tmp_path, "t-1")


def test_a_trials_record_survives_and_is_taken_for_no_other_trials(tmp_path: Path) -> None:
    one, path, params = trial(0.3, reason=None, policy="abc"), tmp_path / "a" / "0.json", {"beta": 0.1, "k": None}
    write_trial(path, one, "t-1/dpo", params)
    assert read_trial(path, "t-1/dpo", {"k": None, "beta": 0.1}) == one
    assert read_trial(path, "t-1/dpo", {"beta": 0.2, "k": None}) is None
    assert read_trial(path, "t-2/dpo", params) is None
    assert read_trial(tmp_path / "none.json", "t-1/dpo", params) is None
    path.write_text(json.dumps(one.to_json()))  # of nobody knows what
    assert read_trial(path, "t-1/dpo", params) is None


def test_free_trials_count_as_the_mean_so_that_every_budget_is_spent() -> None:
    pool = {"pool": Cost(cpu_s=9.0, tokens_generated=500)}
    shared = [({"n": n}, Trial(status="complete", costs=pool)) for n in range(2, 22)]
    found = counted("tokens", shared)
    assert (found.amount, found.free, found.exhausted) == (20 * 500, 19, False)
    assert counted("trials", shared).amount == 20
    paid = [({"n": 1}, Trial(status="complete", costs={"a": Cost(cpu_s=4.0)})), ({"n": 2}, Trial(status="complete"))]
    assert counted("seconds", paid).amount == 8.0


def test_trials_that_cost_nothing_and_try_nothing_new_end_an_arm() -> None:
    paid = ({"n": 4}, Trial(status="complete", costs={"pool": Cost(tokens_generated=500)}))
    again = [({"n": 4}, Trial(status="complete"))] * 10
    assert not counted("tokens", [paid, *again[:9]]).exhausted
    assert counted("tokens", [paid, *again]).exhausted
    assert not counted("tokens", [paid, *again, ({"n": 5}, Trial(status="complete"))]).exhausted
    unfit = [({"n": n}, Trial(status="failed", reason="settings that do not fit")) for n in range(10)]
    assert counted("seconds", unfit).exhausted


def test_figures_are_drawn_for_what_there_is(tmp_path: Path) -> None:
    trials = {n: trial(0.1 * n, kl=1.0 + n, key=str(n)) for n in range(5)} | {5: Trial(status="failed", reason="nan")}
    arm = result(trials, {}, repeats={"seeds": 0}, objective={"max_kl": 3.0})
    two = [row.model_copy(update={"params": row.params | {"rate": 0.1**row.number}}) for row in arm.rows]
    paths = draw(tuning_results(dpo=arm.model_copy(update={"rows": two})), tmp_path)
    names = {path.name for path in paths}
    assert names == {
        "best_so_far_trials.png", "best_so_far_seconds.png", "dpo-history.png", "dpo-slice.png", "dpo-contour.png",
        "dpo-importance.png", "dpo-pareto.png",
    }  # fmt: skip
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in paths)


def sides(**tunings: Spent_ | None) -> list[Side]:
    return [Side(label="sft", kind="sft")] + [
        Side(label=label, kind="dpo" if label.startswith("dpo") else "ppo", tuning=one)
        for label, one in tunings.items()
    ]


def check(*all_sides: Side) -> tuple[Any, str]:
    found = certificate(all_sides, None, train_pairs=None).checks
    one = next(one for one in found if one.name == "same_tuning_budget")
    return one.ok, one.detail


def test_the_certificate_wants_one_budget_and_one_rule() -> None:
    spent = Spent_(trials=20, spent=Cost(cpu_s=60.0), budget="20 trials", rule="tpe")
    assert check(*sides(ppo=spent, dpo=spent))[0] is True
    assert check(*sides(ppo=None, dpo=None))[0] == "not_applicable"
    ok, told = check(*sides(ppo=spent, dpo=None))
    assert ok is False
    assert "not recorded for dpo" in told
    assert check(*sides(ppo=spent, dpo=dataclasses.replace(spent, trials=19)))[0] is False
    ok, told = check(*sides(ppo=spent, dpo=dataclasses.replace(spent, rule="random")))
    assert ok is False
    assert "random" in told
    ok, told = check(*sides(ppo=spent, dpo=dataclasses.replace(spent, met=False)))
    assert ok is False
    assert "not spent for dpo" in told
    compute = dataclasses.replace(spent, budget="600 seconds", trials=9, amount=600.0, used=610.0, largest=70.0)
    assert check(*sides(ppo=compute, dpo=dataclasses.replace(compute, trials=31)))[0] is True
    assert check(*sides(ppo=compute, dpo=dataclasses.replace(compute, budget="300 seconds")))[0] is False


def test_the_ledger_reaches_the_sides_of_the_arms_that_it_knows() -> None:
    found = tuning_results(dpo=result({0: trial(0.0), 1: trial(0.5)}, {}, repeats={"seeds": 0}))
    ledger = ledger_of(found)
    tuned = with_tuning(Side(label="dpo", kind="dpo"), ledger).tuning
    assert tuned is not None
    assert (tuned.trials, tuned.budget, tuned.spent and tuned.spent.cpu_s) == (2, "2 trials", 15.0)
    assert with_tuning(Side(label="ppo", kind="ppo"), ledger).tuning is None
    assert with_tuning(Side(label="dpo", kind="dpo"), None).tuning is None
