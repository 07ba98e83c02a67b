"""An OpenAI-compatible endpoint: asked with bounded patience, and its failures in words."""

from __future__ import annotations

import email.utils
import json
import os
import random
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Final, Generic, TypeVar
from urllib.parse import urlsplit, urlunsplit

from workbench.errors import ConfigError, JudgingError, WorkbenchError
from workbench.judging.text import one_line
from workbench.urls import base_url

T = TypeVar("T")
_MAX_BODY_BYTES: Final = 4 << 20
_BACKOFF_S, _LONGEST_BACKOFF_S = 1.0, 30.0
_LOOPBACK: Final = frozenset({"127.0.0.1", "::1", "localhost"})
_RETRIED: Final = frozenset({408, 409, 425, 429})
_ADVICE: Final[Mapping[int, str]] = {
    401: "set the environment variable named in api_key_env to a valid key",
    402: "the account has no credit left",
    403: "the key may not use this model; ask for access or name another one",
    404: "check the url (it ends before {path}, usually with /v1) and the model id",
    405: "check the url (it ends before {path}, usually with /v1)",
}


class RequestFailed(Exception):
    """A request got no answer: `reason` is a word ("timeout"), `detail` what happened, `status` HTTP's, if any."""

    def __init__(self, reason: str, detail: str, status: int | None = None) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason, self.detail, self.status = reason, detail, status


class Stopped(Exception):
    """The caller wants no more requests."""


@dataclass(frozen=True, kw_only=True)
class Reply:
    """A chat completion. Token counts are None where the server does not count."""

    content: str | None
    refusal: str | None
    finish_reason: str | None
    model: str | None
    prompt_tokens: int | None
    completion_tokens: int | None


class Client(Generic[T]):
    """A client of one endpoint, shared by threads. Made inside the stage: it must not cross a fork.

    Args:
        connection: {"url", "api_key_env", "timeout_s", "max_retries"} and perhaps {"deadline_s", "backoff_s"}.
        stop: Set by the caller to end waits and to send nothing more.

    Raises:
        ConfigError: The url is none, or the named environment variable holds no key.
    """

    path: ClassVar[str]  # below the base url
    whose: ClassVar[str]  # url, in messages
    kept: ClassVar[str]  # what is not lost where the endpoint fails
    error: ClassVar[type[WorkbenchError]]  # where it refuses everybody

    def read(self, data: bytes) -> T | None:
        """What an answer says; None: it is none."""
        raise NotImplementedError

    def __init__(self, connection: Mapping[str, Any], stop: threading.Event) -> None:
        import httpx2

        self._errors = (httpx2.TimeoutException, httpx2.TransportError, httpx2.DecodingError)
        self._timeouts = httpx2.TimeoutException
        self.url = self._url(connection["url"])
        self.name = shown_url(connection["url"])
        self._key = read_key(connection.get("api_key_env"))
        self._timeout_s = float(connection["timeout_s"])
        self._max_retries = int(connection["max_retries"])
        self._deadline_s = float(connection.get("deadline_s") or 300.0)
        self._backoff_s = float(connection.get("backoff_s") or _BACKOFF_S)
        self._stop = stop
        self._not_before = 0.0  # of all threads, after a server said when to come back
        headers = {"Authorization": f"Bearer {self._key}"} if self._key else {}
        # A redirect would carry prompts, and perhaps the key, to where nobody asked for.
        limits = httpx2.Limits(max_connections=None)  # the caller's threads are the limit
        self._client = httpx2.Client(
            headers=headers, timeout=self._timeout_s, limits=limits, follow_redirects=False,
            trust_env=urlsplit(self.url).hostname not in _LOOPBACK,  # no proxy leads to this machine
        )  # fmt: skip

    def close(self) -> None:
        """Drops the connections; requests on their way fail."""
        self._client.close()

    def clean(self, text: str, limit: int = 200) -> str:
        """Text of the server, safe to show and to keep: the key cut out, no controls, one line."""
        return one_line(text.replace(self._key, "***") if self._key else text, limit)

    def ask(self, body: Mapping[str, Any], before_request: Callable[[], None] = lambda: None) -> T:
        """Posts one request, with retries on 429, 5xx, timeouts and lost connections.

        Args:
            body: The JSON body.
            before_request: Called before every HTTP request, retries too; what it raises ends the call.

        Raises:
            RequestFailed: No answer within the retries or the deadline, or the server refuses this body (4xx).
            JudgingError: (or `error`) The endpoint refuses everybody: wrong key, wrong url.
            Stopped: `stop` was set.
        """
        deadline = time.monotonic() + self._deadline_s
        failure = RequestFailed("timeout", f"no turn within {self._deadline_s:g} s")
        for attempt in range(self._max_retries + 1):
            wait_s = self._not_before - time.monotonic()
            if self._not_before > deadline:
                raise RequestFailed("rate_limited", f"the server asks to come back in {wait_s:.0f} s")
            self._sleep(wait_s)
            before_request()
            try:
                return self._read(*self._post(body, deadline))
            except _Transient as problem:
                failure = problem.failure
                # Full jitter below an exponential bound, but never earlier than the server asked for.
                bound = min(_LONGEST_BACKOFF_S, self._backoff_s * 2**attempt)
                wait_s = bound * random.SystemRandom().uniform(0.5, 1.0)
                if problem.retry_after_s is not None:
                    wait_s = problem.retry_after_s
                    self._not_before = max(self._not_before, time.monotonic() + wait_s)
                if attempt == self._max_retries or time.monotonic() + wait_s > deadline:
                    raise failure from None
                self._sleep(wait_s)
        raise failure

    def _sleep(self, seconds: float) -> None:
        if self._stop.wait(max(0.0, seconds)) or self._stop.is_set():
            raise Stopped

    def _post(self, body: Mapping[str, Any], deadline: float) -> tuple[int, Mapping[str, str], bytes]:
        """Status, headers and body, read up to a limit: a server that trickles or floods must not hold the judge."""
        try:
            with self._client.stream("POST", self.url, json=dict(body)) as response:
                data = bytearray()
                for chunk in response.iter_bytes():
                    data += chunk
                    if len(data) > _MAX_BODY_BYTES or time.monotonic() > deadline:
                        raise _Transient(RequestFailed("timeout", "the answer did not end"))
                return response.status_code, response.headers, bytes(data)
        except self._errors as error:
            reason = "timeout" if isinstance(error, self._timeouts) else "connection"
            text = self.clean(f"{type(error).__name__}: {error}")
            raise _Transient(RequestFailed(reason, text)) from None
        except RuntimeError:  # the client was closed under us
            if self._stop.is_set():
                raise Stopped from None
            raise

    def _read(self, status: int, headers: Mapping[str, str], data: bytes) -> T:
        if status == 200:
            reply = self.read(data)
            if reply is None:
                text = self.clean(data[:400].decode("utf-8", "replace"))
                raise _Transient(RequestFailed("server_error", f"no answer: '{text}'", status))
            return reply
        said = self.clean(_error_text(data))
        detail = f"HTTP {status}: {said}"
        if status in _RETRIED or status >= 500:
            reason = "rate_limited" if status == 429 else "server_error"
            raise _Transient(RequestFailed(reason, detail, status), _retry_after_s(headers.get("Retry-After")))
        if status in _ADVICE:
            advice = _ADVICE[status].format(path=self.path)
            raise self.error(f"{self.name} answered HTTP {status} ({said}); {advice}. {self.kept}: run again")
        if 300 <= status < 400:
            where = self.clean(shown_url(headers.get("Location", "")))
            raise self.error(f"{self.name} redirects to {where}; redirects are not followed: name the final url")
        raise RequestFailed("rejected", detail, status)

    def _url(self, url: str) -> str:
        parts = base_url(url)
        if parts is None:
            raise ConfigError(f"{self.whose} url is {shown_url(url)!r}; expected http://HOST[:PORT]/v1 or https://…")
        if parts.username is not None or parts.password is not None:
            raise ConfigError(
                f"{self.whose} url holds a user or password; put the key in a variable named by api_key_env"
            )
        path = parts.path.rstrip("/")
        path = path if path.endswith(self.path) else f"{path}{self.path}"
        return urlunsplit((parts.scheme, parts.netloc, path, parts.query, ""))


class Endpoint(Client[Reply]):
    """A judge's chat endpoint."""

    path = "/chat/completions"
    whose = "the judge's"
    kept = "Verdicts so far are kept"
    error = JudgingError

    def read(self, data: bytes) -> Reply | None:
        return _reply(data)


class _Transient(Exception):
    def __init__(self, failure: RequestFailed, retry_after_s: float | None = None) -> None:
        super().__init__(str(failure))
        self.failure, self.retry_after_s = failure, retry_after_s


def read_key(variable: str | None) -> str | None:
    """The API key from an environment variable; None where none is named.

    Raises:
        ConfigError: The variable is not set, or holds what no HTTP header can carry. Its value is never shown.
    """
    if variable is None:
        return None
    key = os.environ.get(variable, "").strip()
    if not key:
        raise ConfigError(f"api_key_env names {variable}, which is not set; export {variable}=… or set it to null")
    if not key.isascii() or not key.isprintable():
        raise ConfigError(f"the key in {variable} holds characters that no HTTP header can carry; copy it again")
    return key


def shown_url(url: str) -> str:
    """A url without user, password, query and fragment: what may stand in a message."""
    try:
        parts = urlsplit(url)
        host = parts.hostname or ""
        place = f"[{host}]" if ":" in host else host
        return urlunsplit((parts.scheme, f"{place}:{parts.port}" if parts.port else place, parts.path, "", ""))
    except ValueError:
        return "the endpoint"


def _retry_after_s(value: str | None) -> float | None:
    """Seconds of a Retry-After header: a number or a date."""
    if value is None:
        return None
    try:
        seconds = float(value)
    except ValueError:
        try:
            seconds = email.utils.parsedate_to_datetime(value).timestamp() - time.time()
        except (TypeError, ValueError, OverflowError):
            return None
    return max(0.0, seconds) if seconds == seconds else None


def _error_text(data: bytes) -> str:
    """What an error's body says: OpenAI's {"error": {"message"}}, FastAPI's {"detail"}, or the text."""
    text = data[:2000].decode("utf-8", "replace")
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return text
    if isinstance(value, dict):
        found = value.get("error", value.get("detail", value.get("message", text)))
        found = found.get("message", found) if isinstance(found, dict) else found
        return found if isinstance(found, str) else json.dumps(found)
    return text


def _reply(data: bytes) -> Reply | None:
    """The first choice of a chat completion; None for anything else."""
    try:
        value = json.loads(data)
        choice = value["choices"][0]
        message = choice["message"]
        usage = value.get("usage") or {}
        content, refusal, finish = message.get("content"), message.get("refusal"), choice.get("finish_reason")
        return Reply(
            content=content if isinstance(content, str) else None,
            refusal=refusal if isinstance(refusal, str) else None,
            finish_reason=finish if isinstance(finish, str) else None,
            model=value["model"] if isinstance(value.get("model"), str) else None,
            prompt_tokens=_count(usage.get("prompt_tokens")),
            completion_tokens=_count(usage.get("completion_tokens")),
        )
    except (ValueError, KeyError, IndexError, TypeError, AttributeError, RecursionError):
        return None


def _count(value: Any) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) and value >= 0 else None
