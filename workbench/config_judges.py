"""Judges of win rates, by name: a language model at an endpoint, a reward model of another lineage, people.

`gold` and `proxy` need no block: they are scorers that the comparison has anyway. What a judge decides enters the keys
of the stages; where it is reached (url, key, limits) does not, so that an endpoint can move without a verdict lost.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from workbench.config_base import Count, Section, Seed, refuse, url_problems

RESERVED_JUDGES = frozenset({"gold", "proxy"})
Opponents = Literal["sft", "all"]

_EXPLAIN_PAIRS = "Most pairs of responses judged per prompt and two arms: sample i of one meets sample i of the other."
_EXPLAIN_OPPONENTS = "sft: every arm meets the SFT; all: every two arms meet as well, but two best-of-n arms."


class RewardModelJudge(Section):
    """A sequence classifier that no arm was trained on: the higher score wins."""

    kind: Literal["reward_model"] = Field(default="reward_model", description="Kind of judge.")
    folder: str = Field(min_length=1, description="Folder of a sequence classifier with one output (safetensors).")
    pairs_per_prompt: Count = Field(default=4, description=_EXPLAIN_PAIRS)
    opponents: Opponents = Field(default="all", description=_EXPLAIN_OPPONENTS)


class Price(Section):
    """What the endpoint charges, for max_usd."""

    prompt: float = Field(ge=0, description="US dollars per million prompt tokens.")
    completion: float = Field(ge=0, description="US dollars per million completion tokens.")


class LLMJudge(Section):
    """A language model behind an OpenAI-compatible endpoint; it sees both orders of every pair."""

    kind: Literal["llm"] = Field(default="llm", description="Kind of judge.")
    url: str = Field(description="Base URL of the endpoint, up to /v1.")
    model: str = Field(min_length=1, description="Model id, as the endpoint knows it; part of every verdict's key.")
    criterion: str = Field(
        default="Which response is more helpful, correct and appropriate for the prompt?",
        min_length=1,
        description="The question that is put to the judge.",
    )
    temperature: float | None = Field(
        default=0.0, ge=0, description="Sampling temperature of the judge; null: not sent, for models that refuse it."
    )
    max_verdict_tokens: Count = Field(default=512, description="Longest verdict, in tokens.")
    response_format: Literal["auto", "json_schema", "none"] = Field(
        default="auto", description="Whether the endpoint is asked to hold to the verdict's schema; auto: if it can."
    )
    null_model_pairs: Annotated[int, Field(ge=0)] = Field(
        default=8, description="Prompts on which an answer that begs for its own victory meets the baseline: a control."
    )
    seed: Seed = Field(
        default=0,
        description="Of the fences' codes, and sent where temperature is not 0; another one asks everything anew.",
    )
    pairs_per_prompt: Count = Field(default=1, description=_EXPLAIN_PAIRS)
    opponents: Opponents = Field(default="sft", description=_EXPLAIN_OPPONENTS)
    api_key_env: str | None = Field(
        default=None,
        pattern=r"^[A-Za-z_][A-Za-z0-9_]*$",
        description="Environment variable that holds the key; null: no key is sent.",
    )
    concurrency: Count = Field(default=4, description="Requests at once.")
    timeout_s: float = Field(default=60.0, gt=0, description="Longest wait for one answer.")
    max_retries: Annotated[int, Field(ge=0)] = Field(default=5, description="Repeats of a request that failed.")
    deadline_s: float = Field(default=300.0, gt=0, description="Longest wait for one verdict, repeats included.")
    token_limit_field: Literal["max_tokens", "max_completion_tokens"] = Field(
        default="max_tokens", description="Name under which the endpoint takes max_verdict_tokens."
    )
    max_requests: Count | None = Field(
        default=None, description="Most requests of this judge, over all arms, seeds and reruns in one home."
    )
    max_total_tokens: Count | None = Field(
        default=None, description="Most tokens of this judge, prompts included, over all arms, seeds and reruns."
    )
    max_usd: float | None = Field(
        default=None, gt=0, description="Most that this judge may cost over all arms, seeds and reruns; needs price."
    )
    price: Price | None = Field(default=None, description="Prices per million tokens.")

    @model_validator(mode="after")
    def _check(self) -> LLMJudge:
        found = url_problems(self.url)
        if self.max_usd is not None and self.price is None:
            found.append((("max_usd",), "needs price: {prompt: …, completion: …} in US dollars per million tokens"))
        refuse(found)
        return self


class HumanJudge(Section):
    """People's choices, exported blind with `workbench judge export` and read back from a file."""

    kind: Literal["human"] = Field(default="human", description="Kind of judge.")
    verdicts: str = Field(
        min_length=1, description="The filled-in CSV or JSONL of `workbench judge export`, or a folder of several."
    )
    seed: Seed = Field(default=0, description="Order of rows and sides in the export.")
    pairs_per_prompt: Count = Field(default=1, description=_EXPLAIN_PAIRS)
    opponents: Opponents = Field(default="sft", description=_EXPLAIN_OPPONENTS)


Judge = Annotated[RewardModelJudge | LLMJudge | HumanJudge, Field(discriminator="kind")]
JUDGE_KINDS: dict[str, type[Section]] = {"llm": LLMJudge, "reward_model": RewardModelJudge, "human": HumanJudge}
# Where and how an endpoint is reached: no influence on a verdict, so not in a stage's key.
CONNECTION = (
    "url", "api_key_env", "concurrency", "timeout_s", "max_retries", "deadline_s", "token_limit_field", "max_requests",
    "max_total_tokens", "max_usd", "price",
)  # fmt: skip
