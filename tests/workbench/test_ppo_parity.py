"""Our PPO arithmetic against what TRL 1.12's own code made of the same rollouts (benchmarks/golden_ppo.py).

Equal where it should be; where TRL differs, a test shows by how much and from what. docs/ppo.md tells it in words.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.ml_helpers import EOS, PAD, random_rows, tiny_model
from workbench import objectives as o
from workbench.batching import make_batch
from workbench.errors import DataError
from workbench.models import disable_dropout
from workbench.sampling import Decoding, sample, truncate_at_stop
from workbench.scoring import response_logprobs
from workbench.tokens import check_tokenizer, load_tokenizer
from workbench.worlds import helpdesk

GOLDEN = json.loads((Path(__file__).parents[1] / "golden" / "ppo_trl_1_12.json").read_text())
FACTS = GOLDEN["facts"]
PADDED, FULL = ["mixed", "mixed_lam1", "mixed_k3", "mixed_whitened"], ["full", "full_gamma"]


def table(values: Any) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def close(found: Tensor, expected: Tensor | float, within: float = 2e-8) -> None:
    torch.testing.assert_close(found.double(), torch.as_tensor(expected, dtype=torch.float64), rtol=0, atol=within)


@dataclass
class Case:
    """One set of rollouts: our inputs, and TRL's outputs as `trl` (tensors) and `metrics` (numbers)."""

    name: str

    def __post_init__(self) -> None:
        case = GOLDEN["cases"][self.name]
        self.settings, self.metrics = case["settings"], case["metrics"]
        self.trl = {name: table(value) for name, value in case["trl"].items()}
        tables = {name: table(value) for name, value in GOLDEN["rollouts"].items()}
        self.ids = torch.tensor(case["ids"])
        self.mask = self.ids != PAD
        # One position more in each row that ended: where TRL puts the score.
        self.longer = torch.cat([self.mask[:, :1], self.mask[:, :-1]], 1)
        self.scores, self.values, self.new_values = (tables[n] for n in ("scores", "old_values", "new_values"))
        self.old, self.ref, self.new = (self.logprobs(tables[f"{n}_logits"]) for n in ("old", "ref", "new"))
        self.new_logits = tables["new_logits"]

    def logprobs(self, logits: Tensor, temperature: float | None = None) -> Tensor:
        """In float64, to compare beyond float32; `token_logprobs` has its own test."""
        scaled = logits / ((self.settings["temperature"] if temperature is None else temperature) + 1e-7)
        return scaled.log_softmax(-1).gather(-1, self.ids.unsqueeze(-1)).squeeze(-1)

    def found(self, mask: Tensor | None = None) -> tuple[Tensor, o.Advantages]:
        """Our rewards and advantages, not whitened; the KL counts at real tokens alone."""
        mask = self.mask if mask is None else mask
        ref = torch.where(self.mask, self.ref, self.old)
        rewards = o.shaped_rewards(self.scores, self.old, ref, mask, self.settings["kl_coef"])
        return rewards, o.gae(rewards, self.values * mask, mask, self.settings["gamma"], self.settings["lam"])

    def kept(self, values: Tensor) -> Tensor:
        return values[self.mask]


@pytest.fixture(params=[*PADDED, *FULL])
def case(request: pytest.FixtureRequest) -> Case:
    return Case(request.param)


# ------------------------------------------------------------------------------------------- equal


def test_the_rollouts_exercise_what_can_go_wrong() -> None:
    mixed = Case("mixed")
    assert sorted(mixed.mask.sum(1).tolist()) == [1, 2, 3, 4, 5, 5]
    assert 0 < mixed.metrics["policy/clipfrac_avg"] < 1
    assert 0 < mixed.metrics["val/clipfrac_avg"] < 1
    assert GOLDEN["trl"].startswith("1.12.")


def test_masks_name_the_same_tokens(case: Case) -> None:
    assert torch.equal(case.trl["padding_mask"] == 0, case.mask)
    assert torch.equal(case.trl["padding_mask_p1"] == 0, case.longer | case.mask)


def test_logprobs_are_equal_at_the_rollout_temperature(case: Case) -> None:
    tables = GOLDEN["rollouts"]
    for name, ours in (("logprobs", "old_logits"), ("ref_logprobs", "ref_logits")):
        found = o.token_logprobs(table(tables[ours]), case.ids, case.settings["temperature"])
        close(case.kept(found), case.kept(case.trl[name]), 2e-6)


def test_kl_per_token_and_per_sequence_are_equal(case: Case) -> None:
    estimate = o.kl_k3 if case.settings["kl_estimator"] == "k3" else o.kl_k1
    kl = torch.where(case.mask, estimate(case.old, case.ref), torch.zeros(()).double())
    close(kl, case.trl["kl"])
    close(kl.sum(1).mean(), case.metrics["objective/kl"])


@pytest.mark.parametrize("name", FULL)
def test_rewards_and_returns_are_equal_where_no_response_ends_early(name: str) -> None:
    case = Case(name)
    rewards, found = case.found()
    close(rewards, case.trl["rewards"])
    close(found.returns, case.trl["returns"])


@pytest.mark.parametrize("name", [*FULL, "mixed_lam1"])
def test_whitened_advantages_are_equal(name: str) -> None:
    case = Case(name)
    _, found = case.found()
    close(case.kept(found.returns), case.kept(case.trl["returns"]))
    close(o.masked_whiten(found.advantages, case.mask), case.trl["advantages"], 1e-7)


@pytest.mark.parametrize("name", [*FULL, *PADDED])
def test_the_policy_loss_its_clipping_and_its_gradient_are_equal(name: str) -> None:
    """On TRL's advantages, whatever they are: the loss itself leaves padding out, as ours."""
    case = Case(name)
    logits = case.new_logits.clone().requires_grad_()
    loss = o.ppo_policy_loss(
        case.logprobs(logits), case.old, case.trl["advantages"], case.mask, case.settings["cliprange"]
    )
    close(loss.loss, case.trl["pg_loss"])
    close(loss.clip_fraction, case.metrics["policy/clipfrac_avg"], 1e-6)
    (gradient,) = torch.autograd.grad(loss.loss, logits)
    close(gradient, case.trl["new_logits_grad"])


@pytest.mark.parametrize("name", FULL)
def test_the_value_loss_its_clipping_and_its_gradient_are_equal_where_no_response_ends_early(name: str) -> None:
    case = Case(name)
    values = case.new_values.clone().requires_grad_()
    loss = o.ppo_value_loss(values, case.values, case.trl["returns"], case.mask, case.settings["cliprange_value"])
    close(loss.loss, case.trl["vf_loss"])
    close(loss.clip_fraction, case.metrics["val/clipfrac_avg"], 1e-6)
    (gradient,) = torch.autograd.grad(case.settings["vf_coef"] * loss.loss, values)
    close(gradient, case.trl["new_values_grad"])


@pytest.mark.parametrize("name", FULL)
def test_a_whole_update_is_equal_where_no_response_ends_early(name: str) -> None:
    case = Case(name)
    _, found = case.found()
    advantages = o.masked_whiten(found.advantages, case.mask)
    policy = o.ppo_policy_loss(case.new, case.old, advantages, case.mask, case.settings["cliprange"])
    value = o.ppo_value_loss(case.new_values, case.values, found.returns, case.mask, case.settings["cliprange_value"])
    close(policy.loss, case.trl["pg_loss"], 1e-7)
    close(value.loss, case.trl["vf_loss"])


def test_the_sentinel_of_padding_enters_no_entropy_any_more(case: Case) -> None:
    """TRL fills log-probabilities of padding with 1.0; since 1.12 its sequence entropy leaves them out."""
    if not case.mask.all():
        assert float(case.trl["logprobs"][~case.mask].mean()) == 1.0
    close(-(case.old * case.mask).sum(1).mean(), case.metrics["objective/entropy"])


# ------------------------------------------------------------------------------------------- different: arithmetic


def test_trl_puts_the_score_one_step_after_the_end_of_a_response_that_ended() -> None:
    case = Case("mixed")
    rewards, found = case.found()
    lengths, rows = case.mask.sum(1), torch.arange(len(case.mask))
    early = lengths < case.mask.shape[1]
    close(rewards[rows, lengths - 1] - case.trl["rewards"][rows, lengths - 1], case.scores * early)
    close(case.trl["rewards"][rows[early], lengths[early]], case.scores[early])
    # So the last token is credited with lambda of the score and 1 - lambda of the critic's guess of it.
    after = case.values[rows[early], lengths[early]]
    surprise = (found.returns - case.trl["returns"])[rows[early], lengths[early] - 1]
    close(surprise, (1 - case.settings["lam"]) * (case.scores[early] - after))
    assert float(surprise.abs().max()) > 0.05
    # Responses that filled the length are credited with the score: the two kinds are not treated alike.
    close(found.returns[~early], case.trl["returns"][~early])


def test_with_one_step_more_in_the_mask_our_arithmetic_gives_trls_numbers() -> None:
    case = Case("mixed")
    mask = case.mask | case.longer
    rewards, found = case.found(mask)
    close(rewards, case.trl["rewards"])
    close(found.returns, case.trl["returns"])
    close(o.masked_whiten(found.advantages, case.mask), case.trl["advantages"], 1e-7)
    value = o.ppo_value_loss(case.new_values, case.values, found.returns, mask, case.settings["cliprange_value"])
    close(value.loss, case.trl["vf_loss"])


def test_trls_value_loss_is_averaged_over_one_position_of_padding() -> None:
    """Also where the returns agree (lambda 1): the step after the end is one more to learn and to average over."""
    case = Case("mixed_lam1")
    ours, theirs = (
        o.ppo_value_loss(case.new_values, case.values, case.trl["returns"], mask, case.settings["cliprange_value"])
        for mask in (case.mask, case.mask | case.longer)
    )
    close(theirs.loss, case.trl["vf_loss"])
    assert abs(float(ours.loss / theirs.loss) - 1) > 0.03


def test_trl_whitens_rewards_over_one_position_of_padding() -> None:
    case = Case("mixed_whitened")
    mask = case.mask | case.longer
    rewards, _ = case.found(mask)
    whitened = torch.where(
        mask, o.masked_whiten(rewards, mask) + o.masked_mean(rewards, mask), torch.zeros(()).double()
    )
    close(whitened, case.trl["rewards"], 1e-7)
    spread, ours = rewards[mask].std(), case.found()[0][case.mask].std()
    assert abs(float(ours / spread) - 1) > 0.05


def test_trls_approx_kl_and_ratio_are_averaged_over_padding() -> None:
    case = Case("mixed")
    share = float(case.mask.double().mean())
    assert share == pytest.approx(20 / 30)
    half_square = 0.5 * o.masked_mean((case.new - case.old).square(), case.mask)
    close(half_square * share, case.metrics["policy/approxkl_avg"], 1e-6)
    ratio = o.masked_mean((case.new - case.old).exp(), case.mask)
    close(ratio * share + (1 - share), case.metrics["val/ratio"], 1e-6)
    full = Case("full")
    close(0.5 * (full.new - full.old).square().mean(), full.metrics["policy/approxkl_avg"], 1e-6)


def test_trls_policy_entropy_is_averaged_over_padding() -> None:
    case = Case("mixed")
    entropy = o.token_entropy(case.new_logits, case.settings["temperature"])
    close(entropy.mean(), case.metrics["policy/entropy_avg"], 1e-6)
    assert abs(float(o.masked_mean(entropy, case.mask)) - case.metrics["policy/entropy_avg"]) > 1e-3


def test_trls_kl_is_that_at_the_rollout_temperature() -> None:
    """As ours in PPO's log; what is reported is measured by scoring.py, at temperature 1."""
    case = Case("mixed")
    old, ref = (case.logprobs(table(GOLDEN["rollouts"][f"{n}_logits"]), 1.0) for n in ("old", "ref"))
    at_one = float(((old - ref) * case.mask).sum(1).mean())
    assert case.metrics["objective/kl"] / at_one > 1.2


# ------------------------------------------------------------------------------------------- different: the trainer


def test_trl_takes_one_step_a_minibatch_only_without_gradient_accumulation() -> None:
    steps = {one["gradient_accumulation_steps"]: one["optimizer_steps"] for one in FACTS["minibatches"]}
    assert steps == {1: 2, 2: 1}


def test_trl_clips_no_gradient() -> None:
    assert FACTS["gradient_clipping"]["norm_at_the_step"] > 1000 * FACTS["gradient_clipping"]["max_grad_norm"]


def test_trls_first_ratio_is_1_but_for_dropout_in_attention_and_the_models_own_generation_config() -> None:
    found = FACTS["first_ratio"]
    assert found["plain"]["mean_off"] < 1e-5  # left padding and position ids are right
    assert found["plain"]["beyond_clip"] == 0
    assert found["attention_dropout_0.1"]["beyond_clip"] > 0.05
    assert found["repetition_penalty_1.1"]["beyond_clip"] > 0.05


def test_our_first_ratio_is_1_with_the_same_model(tmp_path: Path) -> None:
    helpdesk.build_tokenizer(tmp_path)
    model = tiny_model(load_tokenizer(tmp_path))
    for layer in model.model.layers:
        layer.self_attn.attention_dropout = 0.1
    model.generation_config.repetition_penalty = 1.1
    disable_dropout(model)
    model.train()
    import numpy as np

    prompts = random_rows(np.random.default_rng(0), 16, end=False)
    decoding = Decoding(temperature=0.7, max_response_tokens=12, stop_ids=(EOS,))
    drawn = sample(model, prompts, decoding, pad_id=PAD, seed=0)
    batch = make_batch(prompts, [one.ids for one in drawn], PAD)
    again = response_logprobs(model, batch, 0.7)[batch.response_mask]
    assert torch.tensor([x for one in drawn for x in one.logprobs]) == pytest.approx(again, abs=1e-4)


def test_trls_eos_penalty_looks_for_eos_where_the_stop_id_is_another() -> None:
    assert FACTS["missing_eos"] == {"finished": [0, 1, 1, 1, 1, 1], "charged": [1] * 6}
    assert truncate_at_stop([3, 2, 4], {2}) == ([3, 2], "stop")  # what the eos rule goes by here


def test_trl_loses_the_last_token_where_the_pad_token_is_the_eos(tmp_path: Path) -> None:
    found = FACTS["pad_is_eos"]
    lost = [length - counted for length, counted in zip(found["lengths"], found["counted"], strict=True)]
    assert lost == [0, 1, 1, 1, 1, 1]  # the first did not end
    helpdesk.build_tokenizer(tmp_path)
    tokenizer = load_tokenizer(tmp_path)
    tokenizer.pad_token_id = tokenizer.eos_token_id
    with pytest.raises(DataError, match="also a stop id"):
        check_tokenizer(tokenizer, [tokenizer.eos_token_id])


def test_trl_reads_the_score_of_a_response_that_starts_with_the_pad_token_at_the_prompt() -> None:
    assert FACTS["empty_response"]["score"] == FACTS["empty_response"]["at_the_last_prompt_token"]
    assert make_batch([[30, 20]], [[PAD, EOS]], PAD).response_mask.tolist() == [[True, True]]  # drawn, so it counts


def test_trl_trains_on_a_nan_and_waits_forever_for_a_batch_of_too_few_prompts() -> None:
    assert FACTS["not_finite"] == {"train_returned": True, "loss_was_nan": True}
    assert FACTS["few_prompts"] == {"batch": 6, "prompts": 5, "batches": 0}
    assert FACTS["resume"] == {"parameters_of_train": ["self"]}
