"""The part of results.json about perfect optimizers: what each reward could give at each KL."""

from __future__ import annotations

from pydantic import Field

from workbench.results_base import Compared, Count, E, Model


class TiltPoint(Model):
    """The KL-regularized optimum pi_ref exp(r / beta) of one reward, estimated on the SFT's candidate pools.

    A refused point keeps beta and ess; its figures are null, with the reason in `method`.
    """

    reward: str = Field(description="Name of a reward model, implicit/LABEL of a dpo arm, or gold")
    beta: float = Field(gt=0, description="Price of a nat, in the reward's unit; geometric mean over run seeds")
    seq_kl: E = Field(description="KL(tilt || reference) in nats a response, at temperature 1")
    gold_reward: E | None = Field(description="Mean gold under the tilt; null without gold")
    gold_gain: E | None = Field(description="The same less the pools' own mean, paired by prompt")
    proxy_reward: E = Field(description="Mean score of the shared reward model under the tilt")
    ess: float = Field(ge=0, description="Effective sample size, 10th percentile over prompts and run seeds")
    pool: Count = Field(description="Candidates a prompt")


class TiltDifference(Model):
    """Gain in gold of one reward's perfect optimizer less that of another's at the same KL."""

    reward: str
    against: str
    kl: float = Field(gt=0, description="Nats a response; both curves are read off there, linear in sqrt(KL)")
    gold_gain: Compared = Field(description="Paired by prompt and run seed")
