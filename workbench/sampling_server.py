"""Responses drawn by a server behind an OpenAI-compatible completions API, each kept on disk as it comes.

The server draws and nothing else: prompts go as the token ids that every arm shares (as text only where a server takes
no ids), stop ids end a response by our own rule, every request has its own seed, and log-probabilities are computed by
our own model afterwards. That model also says whether the responses can be its own (`workbench.sampling_check`).
"""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import json
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from workbench import fsio
from workbench.config_sampling import MODEL
from workbench.errors import ConfigError, IntegrityError, SamplingError
from workbench.judging.endpoint import Client, RequestFailed, Stopped
from workbench.sampling import Decoding, Sample, truncate_at_stop
from workbench.sampling_check import agreement, check_agreement
from workbench.server_process import Running, started
from workbench.stage_log import StageLog
from workbench.tokens import encode_response

KEPT_FILE: Final = "served.jsonl"
MOST_RETOKENIZED: Final = 0.02  # share of responses whose text gives other ids than were drawn
_IN_A_ROW: Final = 5  # requests without an answer, after their retries, before the server counts as down
_GRACE_S: Final = 8.0


@dataclass(frozen=True, kw_only=True)
class Request:
    """One response that is wanted: the prompt's text and its ids (P,)."""

    prompt: str
    ids: Sequence[int]


@dataclass(frozen=True, kw_only=True)
class Answer:
    """The first choice of a completion. Ids and counts are None where the server does not tell them."""

    text: str
    ids: list[int] | None
    prompt_ids: list[int] | None
    finish_reason: str | None
    stop_reason: int | str | None
    tokens: int | None


class Completions(Client[Answer]):
    """A server's completions endpoint."""

    path = "/completions"
    whose = "the sampling server's"
    kept = "Responses so far are kept"
    error = SamplingError

    def read(self, data: bytes) -> Answer | None:
        try:
            value = json.loads(data)
            choice = value["choices"][0]
            tokens = (value.get("usage") or {}).get("completion_tokens")
            return Answer(
                text=str(choice.get("text") or ""),
                ids=_ids(choice.get("token_ids")),
                prompt_ids=_ids(choice.get("prompt_token_ids")),
                finish_reason=choice.get("finish_reason"),
                stop_reason=choice.get("stop_reason"),
                tokens=tokens if isinstance(tokens, int) else None,
            )
        except (ValueError, KeyError, IndexError, TypeError, AttributeError, RecursionError):
            return None


class ServerSampler:
    """Draws one response for each request by a server.

    Args:
        server: {"command", "model", "tokens", "body"} of the config.
        connection: {"url", "api_key_env", "concurrency", "timeout_s", "max_retries", "deadline_s", "start_timeout_s"}.
        decoding: Temperature, top-p, length and stop ids.
        tokenizer: Of the policy.
        log: Its scratch folder keeps the responses; asked whether to stop.
    """

    def __init__(
        self,
        server: Mapping[str, Any],
        connection: Mapping[str, Any],
        decoding: Decoding,
        tokenizer: Any,
        log: StageLog,
    ) -> None:
        self._server, self._connection, self._decoding = server, connection, decoding
        self._tokenizer, self._log = tokenizer, log
        self._text = server["tokens"] == "text"
        self._path = log.work / KEPT_FILE
        self._kept: dict[int, Mapping[str, Any]] = {}
        self._lock = threading.Lock()
        self._clock = 0.0, 0.0  # wall and CPU seconds when the last response came

    def sample(
        self, folder: Path, requests: Sequence[Request], *, seed: int, on_batch: Callable[[int], None]
    ) -> list[Sample]:
        """Responses in the order of `requests`, without log-probabilities; those of an earlier attempt are kept.

        Args:
            folder: Of the policy's checkpoint.
            requests: Repeat one to sample it again.
            seed: Each request's own seed is derived from it and the request's number.
            on_batch: Called with the number of responses that there are.

        Raises:
            SamplingError: The server does not answer, or not all; a rerun asks for what is missing.
            ConfigError: The server takes or gives no token ids.
            IntegrityError: It read another prompt, or responses end otherwise than they must.
        """
        if self._text:
            self._check_prompts(requests)
        self._kept = {row["row"]: row for row in fsio.read_json_lines(self._path) if _whole(row)}
        missing = [number for number in range(len(requests)) if number not in self._kept]
        on_batch(len(self._kept))
        if missing:
            with self._reached(folder) as (url, running):
                self._clock = time.monotonic(), time.process_time()
                self._ask_all(missing, requests, url, folder, seed, on_batch, running)
        found = [self._kept[number] for number in range(len(requests))]
        retokenized = sum(bool(one["retokenized"]) for one in found)
        if retokenized > MOST_RETOKENIZED * len(found):
            self.forget()
            raise IntegrityError(
                f"{retokenized} of {len(found)} responses give other token ids when their text is read back, so they "
                "are not what was drawn; use a server that returns token ids (sampling.server.tokens: ids)",
                where="sampling.server.tokens",
            )
        return [Sample(ids=list(one["ids"]), logprobs=[], finish_reason=one["finish_reason"]) for one in found]

    def check(
        self, policy: Any, reference: Any | None, prompts: Sequence[Sequence[int]], drawn: Sequence[Sample]
    ) -> dict[str, Any]:
        """Holds what the server drew against the policy's own probabilities; for facts.json.

        Args:
            policy: Whose samples they should be.
            reference: The SFT; None where that is the policy.
            prompts: Token ids, row by row.
            drawn: Row by row.

        Raises:
            IntegrityError: It cannot be the policy's own; what was kept is dropped.
        """
        responses = [one.ids for one in drawn]
        count = self._server["check_responses"]
        found = agreement(policy, reference, prompts, responses, self._decoding, count)
        try:
            check_agreement(found)
        except IntegrityError:
            self.forget()
            raise
        self._log.say(
            f"sampled by the server: {found.difference:+.4f} nats a token off the policy's own "
            f"(standard error {found.standard_error:.4f}, {found.tokens} tokens)"
        )
        return dataclasses.asdict(found)

    def forget(self) -> None:
        """Drops what was kept: it cannot be used."""
        self._path.unlink(missing_ok=True)

    @property
    def name(self) -> str:
        """How the responses were drawn, for the certificate."""
        return f"server, {self._server['tokens']}"

    @property
    def took(self) -> dict[str, float]:
        """Seconds of drawing all responses, over all attempts, without the server's start; CPU seconds are ours alone,
        not the server's."""
        wall_s, cpu_s = (sum(one[name] for one in self._kept.values()) for name in ("wall_s", "cpu_s"))
        return {"sampling_wall_s": wall_s, "sampling_cpu_s": cpu_s}

    # ------------------------------------------------------------------------------------------------ asking

    @contextmanager
    def _reached(self, folder: Path) -> Iterator[tuple[str, Running | None]]:
        """The base URL, of a server that is started for this policy or runs already."""
        if self._server["command"] is None:
            yield self._connection["url"], None
            return
        wanted = self._log.stop_requested
        with started(self._server["command"], folder, self._connection, self._log.work, wanted) as running:
            yield running.url, running

    def _ask_all(
        self,
        missing: Sequence[int],
        requests: Sequence[Request],
        url: str,
        folder: Path,
        seed: int,
        on_batch: Callable[[int], None],
        running: Running | None,
    ) -> None:
        stop = threading.Event()
        client = Completions({**self._connection, "url": url}, stop)
        workers = min(len(missing), int(self._connection["concurrency"]))
        pool = ThreadPoolExecutor(max_workers=workers, thread_name_prefix="sampling")
        todo = iter(missing)
        under_way: set[Future[RequestFailed | None]] = set()
        failures: list[RequestFailed] = []
        in_a_row = 0
        room = 1  # the first request goes alone: a server that cannot do it costs one request
        try:
            while in_a_row < _IN_A_ROW and not any(one.reason == "rejected" for one in failures):
                for number in itertools.islice(todo, room):
                    body = self._body(requests[number], folder, seed, number)
                    under_way.add(pool.submit(self._one, client, number, requests[number], body))
                if not under_way:
                    break
                finished, under_way = wait(under_way, timeout=0.2, return_when=FIRST_COMPLETED)
                for failure in [one.result() for one in finished]:
                    in_a_row = 0 if failure is None else in_a_row + 1
                    failures += [] if failure is None else [failure]
                room = 2 * workers - len(under_way) if finished else 0
                on_batch(len(self._kept))
        finally:
            # What is on its way gets a moment, then the line is cut.
            stop.set()
            pool.shutdown(wait=False, cancel_futures=True)
            wait([one for one in under_way if not one.cancelled()], timeout=_GRACE_S)
            client.close()
        if failures:
            raise self._incomplete(client, running, len(requests), failures[-1])

    def _one(self, client: Completions, number: int, request: Request, body: Mapping[str, Any]) -> RequestFailed | None:
        """Keeps one response, in a thread of the pool, or says why there is none."""
        try:
            answer = client.ask(body)
        except RequestFailed as failure:
            return failure
        except Stopped:
            return None
        ids, reason, retokenized = self._read_text(request, answer) if self._text else self._read_ids(request, answer)
        row = {"row": number, "ids": ids, "finish_reason": reason, "retokenized": retokenized}
        with self._lock, fsio.disk_errors("Keeping a sampled response", self._path.parent):
            # Since the response before, so that the sum over responses is what drawing them took.
            now = time.monotonic(), time.process_time()
            row |= {"wall_s": now[0] - self._clock[0], "cpu_s": now[1] - self._clock[1]}
            fsio.append_json(self._path, row)
            self._kept[number], self._clock = row, now
        return None

    def _body(self, request: Request, folder: Path, seed: int, number: int) -> dict[str, Any]:
        decoding = self._decoding
        body: dict[str, Any] = {
            "model": self._server["model"].replace(MODEL, str(folder)),
            "prompt": request.prompt if self._text else list(request.ids),
            "max_tokens": decoding.max_response_tokens,
            "temperature": decoding.temperature,
            "top_p": decoding.top_p,
            "seed": int.from_bytes(hashlib.sha256(f"{seed}/{number}".encode()).digest()[:4]) >> 1,
        }
        if not self._text:
            # All that a server might set by itself from the model's generation_config.json is said.
            body |= {
                "stop_token_ids": list(decoding.stop_ids), "ignore_eos": True, "skip_special_tokens": False,
                "return_token_ids": True, "n": 1, "top_k": -1, "min_p": 0.0, "repetition_penalty": 1.0,
                "presence_penalty": 0.0, "frequency_penalty": 0.0,
            }  # fmt: skip
        return body | dict(self._server["body"])

    # ------------------------------------------------------------------------------------------------ reading

    def _read_ids(self, request: Request, answer: Answer) -> tuple[list[int], str, bool]:
        """(ids, finish reason, False) of an answer in token ids, held against what a response must be."""
        if answer.ids is None:
            raise ConfigError(
                "the server returned no token ids (choices[0].token_ids); use vLLM 0.10.2 or newer, or "
                "sampling.server.tokens: text",
                where="sampling.server.tokens",
            )
        if answer.prompt_ids is not None and answer.prompt_ids != list(request.ids):
            raise IntegrityError(
                f"the server read a prompt of {len(answer.prompt_ids)} tokens, but {len(request.ids)} were sent; it "
                "must take token ids as they are"
            )
        ids, reason = truncate_at_stop(answer.ids, self._decoding.stop_ids)
        if reason == "length" and answer.finish_reason == "stop" and answer.stop_reason in self._decoding.stop_ids:
            assert isinstance(answer.stop_reason, int)
            ids, reason = [*ids, answer.stop_reason], "stop"  # the server left the stop token out
        longest = self._decoding.max_response_tokens
        if len(ids) > longest or (reason == "length" and len(ids) != longest):
            raise IntegrityError(
                f"the server ended a response ({answer.finish_reason}) after {len(ids)} tokens without a stop id; "
                f"expected one of {list(self._decoding.stop_ids)} or {longest} tokens. Is its context too short for "
                "prompt and response together, or is another stop set?"
            )
        return ids, reason, False

    def _read_text(self, request: Request, answer: Answer) -> tuple[list[int], str, bool]:
        """(ids, finish reason, whether the server counts other ids) of an answer in text."""
        longest, finished = self._decoding.max_response_tokens, answer.finish_reason == "stop"
        before = "" if self._joins_by_spaces else request.prompt
        stops = self._decoding.stop_ids
        ids = encode_response(self._tokenizer, before, answer.text, stop_ids=stops, finished=finished)
        if not finished and answer.tokens == longest == len(ids) + 1:  # its last token is a stop id, which is no text
            ids = [*ids, stops[0]]
        ids, reason = truncate_at_stop(ids[:longest], stops)
        if not ids:
            raise IntegrityError("the server returned no text, and nothing that ended it")
        return (
            ids,
            reason,
            (answer.tokens is not None and answer.tokens != len(ids)) or (reason == "length" and len(ids) < longest),
        )

    @property
    def _joins_by_spaces(self) -> bool:
        """The tokenizer decodes a response without the space before it, which stands for nothing in the ids."""
        backend = getattr(self._tokenizer, "backend_tokenizer", None)
        return backend is not None and backend.decoder is None

    def _check_prompts(self, requests: Sequence[Request]) -> None:
        """Refuses prompts that a server reads otherwise than our arms do."""
        for prompt, ids in {one.prompt: one.ids for one in requests}.items():
            if list(self._tokenizer(prompt)["input_ids"]) != list(ids):
                raise ConfigError(
                    "a prompt's text gives other token ids than every arm is trained on, first "
                    f"{prompt[:80]!r}; use a server that takes token ids (tokens: ids)",
                    where="sampling.server.tokens",
                )

    def _incomplete(
        self, client: Completions, running: Running | None, wanted: int, failure: RequestFailed
    ) -> SamplingError:
        trouble = running.trouble() if running is not None else None
        told = f"{client.name}: {failure}" + (f"; {client.clean(trouble, 2000)}" if trouble is not None else "")
        advice = (
            "the server refuses the request: see its context length and sampling.server.body"
            if failure.reason == "rejected"
            else "see that it runs"
        )
        return SamplingError(
            f"{len(self._kept)} of {wanted} responses were sampled, the last failure: {told}. Responses so far are "
            f"kept: {advice}, and run again"
        )


def _ids(value: Any) -> list[int] | None:
    fits = isinstance(value, list) and all(isinstance(one, int) and not isinstance(one, bool) for one in value)
    return value if fits else None


def _whole(row: Mapping[str, Any]) -> bool:
    numbers = all(isinstance(row.get(name), float) for name in ("wall_s", "cpu_s"))
    ended = row.get("finish_reason") in ("stop", "length")
    return numbers and ended and isinstance(row.get("row"), int) and bool(_ids(row.get("ids")))
