"""The tuning section: ranges that fit the arms, selectors that are no judges, trial 0 that is the config itself."""

from __future__ import annotations

from pathlib import Path

import pytest

from workbench.config import Comparison, load_config
from workbench.config_tuning import Param
from workbench.errors import ConfigError
from workbench.tuning_spaces import (
    default_params,
    default_space,
    labels_of,
    largest_n,
    space_of,
    tuning_of,
    upstream_digest,
    with_params,
)

BASE = """\
name: t
model: {world: helpdesk}
data: {world: helpdesk, pairs: 48, validation_pairs: 16, test_pairs: 16}
arms:
  ppo: {kl_coef: 0.1}
  dpo: {beta: 0.3}
  dpo-low: {kind: dpo, beta: 0.05}
  best_of_n: {n: 4}
"""


@pytest.fixture
def load(tmp_path: Path):  # type: ignore[no-untyped-def]
    def loaded(more: str = "", *overrides: str) -> Comparison:
        path = tmp_path / "config.yaml"
        path.write_text(BASE + more)
        return load_config(path, overrides)

    return loaded


@pytest.mark.parametrize(
    ("more", "line", "words"),
    [
        ("tuning:\n  budget: {trials: 3, tokens: 5}\n", 10, "exactly one of trials, seconds, tokens"),
        ("tuning:\n  spaces:\n    dpo:\n      betta: {float: [0.1, 1]}\n", 12, "no such field"),
        ("tuning:\n  spaces:\n    dop: {beta: {float: [0.1, 1]}}\n", 11, "no such arm"),
        ("tuning:\n  spaces:\n    ppo: {kl_coef: {float: [0.2, 1]}}\n", 11, "trial 0"),
        ("tuning:\n  spaces:\n    ppo: {kl_coef: {float: [1, 0.2]}}\n", 11, "lowest first"),
        ("tuning:\n  spaces:\n    ppo: {kl_coef: {float: [0, 1], log: true}}\n", 11, "above 0"),
        ("tuning:\n  spaces:\n    dpo: {labels: {categorical: [given, main]}}\n", 11, "change what is compared"),
        ("tuning:\n  spaces:\n    ppo: {clip: {float: [0.1, 1], when: {gamma: 1}}}\n", 11, "a setting above"),
        ("tuning:\n  spaces:\n    dpo: {beta: {float: [0, 1]}}\n", 11, "got 0.0, expected more than 0"),
        ("tuning:\n  spaces:\n    best_of_n: {n: {float: [2, 64]}}\n", 11, "a whole number; use int"),
        ("tuning:\n  spaces:\n    best_of_n: {n: {int: [2, 9999]}}\n", 11, "got 9999, expected at most 4096"),
        ("tuning:\n  spaces:\n    best_of_n: {n: {categorical: [4, 16, null]}}\n", 11, "null.*expected a whole"),
        ("tuning:\n  spaces:\n    ppo: {minibatches: {categorical: [2, null]}}\n", 11, "null.*expected a whole"),
        (
            "reward_models: {main: {path: a/b}}\ntuning:\n  spaces:\n    reward_model: {epochs: {int: [1, 4]}}\n",
            12,
            "nothing to tune",
        ),
        ("tuning: {objective: {metric: win_rate}}\n", 9, "expected one with metric win_rate"),
        ("tuning: {objective: {metric: win_rate, judge: bob}}\n", 9, "expected one of gold, proxy"),
        ("evaluation: {judges: [proxy]}\ntuning: {objective: {metric: proxy_reward}}\n", 10, "final judge"),
        ("tuning: {objective: {against_kl: true}, pruner: {kind: median}}\n", 9, "cannot be pruned"),
        ("seeds: [0, 1001]\ntuning: {}\n", 10, "seeds.runs"),
        ("tuning: {storage: 'postgresql://u:secret@h/d'}\n", 9, "password"),
        ("tuning: {pruner: {at: [0.5, 0.2]}}\n", 9, "rising"),
    ],
)
def test_what_does_not_fit_is_refused_at_its_place(load, more: str, line: int, words: str) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(ConfigError, match=words) as caught:
        load(more)
    assert f"config.yaml:{line}:" in str(caught.value)
    assert "secret" not in str(caught.value)


def test_gold_may_select_although_it_judges(load) -> None:  # type: ignore[no-untyped-def]
    assert load("tuning: {objective: {metric: gold_reward}}\n").tuning is not None


def test_the_section_changes_no_digest_and_survives_its_dump(load) -> None:  # type: ignore[no-untyped-def]
    plain, tuned = load(), load("tuning: {budget: {seconds: 60.0}, spaces: {dpo: {beta: {float: [0.01, 1]}}}}\n")
    assert plain.digest() == tuned.digest()
    again = Comparison.model_validate(tuned.model_dump(mode="json"))
    assert again.tuning == tuned.tuning
    assert upstream_digest(plain) == upstream_digest(tuned)
    assert upstream_digest(load("", "data.pairs=64")) != upstream_digest(plain)


def test_default_spaces_are_as_wide_for_every_arm_and_hold_the_default(load) -> None:  # type: ignore[no-untyped-def]
    comparison = load("  rloo: {}\n  grpo: {kl_coef: 0.0}\n")
    for label in labels_of(comparison, ("all", "reward_model")):
        space, default = space_of(comparison, label), default_params(comparison, label)
        assert space.keys() == default.keys()
        assert all(space[name].holds(value) for name, value in default.items()), label
        if "learning_rate" in space:
            low, high = space["learning_rate"].float or (0, 0)
            assert high / low == pytest.approx(16)
    for label, pull in {"ppo": "kl_coef", "dpo": "beta", "dpo-low": "beta", "rloo": "kl_coef"}.items():
        low, high = space_of(comparison, label)[pull].float or (0, 0)
        assert high / low == pytest.approx(25)
    assert default_space("best_of_n", comparison.arms["best_of_n"])["n"].int == [2, 64]


def test_spaces_by_label_go_before_those_by_kind(load) -> None:  # type: ignore[no-untyped-def]
    spaces = "{dpo: {beta: {float: [0.01, 1]}}, dpo-low: {beta: {float: [0.04, 0.06]}}}"
    comparison = load(f"tuning: {{spaces: {spaces}}}\n")
    assert space_of(comparison, "dpo")["beta"].float == [0.01, 1]
    assert space_of(comparison, "dpo-low")["beta"].float == [0.04, 0.06]


def test_labels_kinds_and_all(load) -> None:  # type: ignore[no-untyped-def]
    comparison = load()
    assert labels_of(comparison, ("all",)) == ["ppo", "dpo", "dpo-low", "best_of_n"]
    assert labels_of(comparison, ("best_of_n", "dpo-low", "best_of_n")) == ["best_of_n", "dpo-low"]
    with pytest.raises(ConfigError, match="reward_model"):
        labels_of(comparison, ("dop",))


def test_settings_take_what_follows_from_them_along(load) -> None:  # type: ignore[no-untyped-def]
    comparison = load()
    ppo = with_params(comparison, "ppo", {"learning_rate": 1e-3}).arms["ppo"].model_dump()
    assert (ppo["learning_rate"], ppo["critic_learning_rate"], ppo["kl_coef"]) == (1e-3, 1e-3, 0.1)
    best = with_params(comparison, "best_of_n", {"n": 8}).arms["best_of_n"].model_dump()
    assert (best["report_n"], best["pool"]) == ([1, 2, 4, 8], 32)
    assert comparison.arms["best_of_n"].model_dump()["n"] == 4
    assert with_params(comparison, "reward_model", {"epochs": 1.0}).reward_models["main"].epochs == 1
    with pytest.raises(ConfigError, match="multiple of ppo's minibatches"):
        with_params(comparison, "ppo", {"minibatches": 3})
    assert largest_n(comparison, "best_of_n") == 64


def test_a_value_that_only_other_settings_forbid_is_left_to_the_trials(load) -> None:  # type: ignore[no-untyped-def]
    comparison = load("tuning:\n  spaces:\n    ppo: {minibatches: {categorical: [2, 3]}}\n")
    assert default_params(comparison, "ppo") == {"minibatches": 2}


def test_a_reward_model_that_is_not_trained_cannot_be_tuned(load, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    comparison = load()
    given = comparison.reward_models["main"].model_copy(update={"path": "some/folder"})
    comparison = comparison.model_copy(update={"reward_models": {"main": given}})
    with pytest.raises(ConfigError, match="nothing of it can be tuned"):
        labels_of(comparison, ("all", "reward_model"))
    assert labels_of(comparison, ("dpo",)) == ["dpo"]


def test_conditional_settings(load) -> None:  # type: ignore[no-untyped-def]
    more = """\
tuning:
  spaces:
    ppo:
      critic: {categorical: [separate, head]}
      value_coef: {float: [0.01, 1], log: true, when: {critic: [head]}}
"""
    comparison = load(more)
    assert default_params(comparison, "ppo") == {"critic": "separate"}
    assert Param(int=[1, 3], when={"a": True}).active({"a": True})
    assert not Param(int=[1, 3], when={"a": True}).active({})
    changed = with_params(comparison, "ppo", {"critic": "head", "value_coef": 0.5}).arms["ppo"].model_dump()
    assert (changed["critic"], changed["value_coef"]) == ("head", 0.5)


def test_a_reward_model_has_no_kl(load) -> None:  # type: ignore[no-untyped-def]
    comparison = load("tuning: {objective: {against_kl: true, max_kl: 3.0}}\n")
    assert tuning_of(comparison, "dpo") == comparison.tuning
    objective = tuning_of(comparison, "reward_model").objective
    assert (objective.against_kl, objective.max_kl) == (False, None)
