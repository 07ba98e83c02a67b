"""How the policies that are compared are sampled: by the workbench, or by a server behind an OpenAI-compatible API."""

from __future__ import annotations

import re
import shlex
from typing import Annotated, Any, Final, Literal

from pydantic import Field, model_validator

from workbench.config_base import Count, Problem, Section, refuse, url_problems
from workbench.redact import redact

MODEL, PORT = "{model}", "{port}"
# What of a request says which response is wanted: not to be said otherwise by `body`.
OURS: Final = {
    "model", "prompt", "max_tokens", "temperature", "top_p", "seed", "stop_token_ids", "n", "best_of", "echo", "stream",
}  # fmt: skip
_KEY: Final = re.compile(r"api[-_]?key", re.IGNORECASE)
# Where and how patiently a server is asked: no influence on what it draws, so not in a stage's key.
CONNECTION = ("url", "api_key_env", "concurrency", "timeout_s", "max_retries", "deadline_s", "start_timeout_s")


class SamplingServer(Section):
    """A server that samples evaluation answers and candidates; training and log-probabilities stay with us."""

    command: str | None = Field(
        default=None,
        description="Started for each policy and stopped again: '/opt/vllm/bin/vllm serve {model} --port {port}'. "
        "{model}: the checkpoint's folder, {port}: a free port of 127.0.0.1.",
    )
    url: str | None = Field(default=None, description="Or: base URL of a running server, up to /v1.")
    model: str = Field(
        default=MODEL,
        min_length=1,
        description="Model id in requests; {model}: the checkpoint's folder. A fixed id names one policy, the SFT.",
    )
    tokens: Literal["ids", "text"] = Field(
        default="ids",
        description="ids: prompts and responses go as token ids (vLLM 0.10.2 or newer); text: as text that is "
        "tokenized anew, for servers that take no ids.",
    )
    body: dict[str, Any] = Field(
        default_factory=dict, description="More fields of every request, for what a server calls otherwise."
    )
    check_responses: Annotated[int, Field(ge=8)] = Field(
        default=128, description="Responses of each policy that are held against our own model's probabilities."
    )
    api_key_env: str | None = Field(
        default=None,
        pattern=r"^[A-Za-z_][A-Za-z0-9_]*$",
        description="Environment variable that holds the key; null: no key is sent.",
    )
    concurrency: Count = Field(default=64, description="Requests at once.")
    timeout_s: float = Field(default=300.0, gt=0, description="Longest wait for one response.")
    max_retries: Annotated[int, Field(ge=0)] = Field(default=5, description="Repeats of a request that failed.")
    deadline_s: float = Field(default=900.0, gt=0, description="Longest wait for one response, repeats included.")
    start_timeout_s: float = Field(default=600.0, gt=0, description="Longest wait until a started server is ready.")

    @model_validator(mode="after")
    def _check(self) -> SamplingServer:
        urls = url_problems(self.url) if self.url is not None else []
        refuse([*self._command_problems(), *urls, *self._body_problems()])
        return self

    def _command_problems(self) -> list[Problem]:
        if (self.command is None) == (self.url is None):
            got = "neither" if self.url is None else "both"
            return [((), f"got {got}, expected exactly one of command and url")]
        if self.command is None:
            return []
        found: list[Problem] = []
        missing = [name for name in (MODEL, PORT) if name not in self.command]
        if missing:
            found.append((("command",), f"expected {' and '.join(missing)} in it"))
        try:
            words = shlex.split(self.command)
        except ValueError as error:
            return [(("command",), f"cannot be read as a command line: {error}")]
        if any(_KEY.search(word) for word in words) or redact(words) != words:
            message = "holds a key, which would be copied into reports; let the server read it from its environment"
            found.append((("command",), f"{message} (VLLM_API_KEY) and name that in api_key_env"))
        return found

    def _body_problems(self) -> list[Problem]:
        found: list[Problem] = []
        if named := sorted(OURS & self.body.keys()):
            message = f"got {', '.join(named)}, which every request gets from evaluation, the prompt and the seeds"
            found.append((("body",), f"{message}; remove it"))
        if redact(self.body) != self.body:
            found.append((("body",), "holds a key, which would be copied into reports; name api_key_env instead"))
        return found

    @property
    def one_policy(self) -> bool:
        """The server knows a single policy, whatever is asked for."""
        return self.url is not None and MODEL not in self.model


class Sampling(Section):
    """How responses are drawn where policies are compared. PPO, RLOO and GRPO roll out with our own sampler."""

    cache: Literal["dynamic", "static", "compiled"] = Field(
        default="dynamic",
        description="Keys and values of what was read: dynamic grows by copying, static is allocated once, compiled "
        "has fixed shapes for torch.compile. The same distribution; rounding may differ with compiled.",
    )
    server: SamplingServer | None = Field(default=None, description="Samples by a server; null: by the workbench.")

    @model_validator(mode="after")
    def _check(self) -> Sampling:
        if self.server is not None and self.cache != "dynamic":
            refuse([(("cache",), "has no effect on evaluation with sampling.server; remove it")])
        return self

    def semantic(self) -> dict[str, Any]:
        """The fields that can change what is drawn; {} where all have their defaults."""
        dump = self.model_dump(mode="json", exclude_defaults=True)
        if self.server is not None:
            dump["server"] = self.server.model_dump(mode="json", exclude=set(CONNECTION))
        return dump
