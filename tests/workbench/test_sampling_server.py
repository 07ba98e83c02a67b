"""Sampling by a server: the same ids, its faults, what is kept, and whether the responses can be the policy's own.

The scripted server speaks vLLM's completions protocol, token ids in and out, and draws from a real (tiny) model.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.ml_helpers import PAD, STOPS, Log, World, build_world, policy_of, random_rows, tiny_model
from tests.workbench.judging_server import Answer, Asked, serving
from workbench import evaluation
from workbench.config import SamplingServer, check_paths, load_config
from workbench.data.records_io import read_jsonl
from workbench.errors import ConfigError, IntegrityError, SamplingError, StageInterrupted
from workbench.models import save_model, trunk_digest
from workbench.packed import read_packed_prompts
from workbench.policy_set import Checkpoint, write_policy_set
from workbench.sampling import Decoding, sample
from workbench.sampling_check import agreement
from workbench.sampling_server import KEPT_FILE
from workbench.scoring import sequence_logprobs
from workbench.server_process import GUARD, started

LENGTH = 8
KEY = "sk-local-0123456789abcdefghij"
CONFIG: dict[str, Any] = {
    "split": "validation", "prompts": 8, "samples_per_prompt": 8, "temperature": 1.0, "top_p": 1.0,
    "max_response_tokens": LENGTH, "stop_ids": STOPS, "batch_size": 32, "trust_remote_code": False,
}  # fmt: skip


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    """With a policy set of one checkpoint beside the SFT."""
    world = build_world(tmp_path_factory.mktemp("world"))
    model = tiny_model(world.tokenizer, seed=7)
    save_model(model, world.tokenizer, world.root / "policy" / "checkpoints/last")
    listed = [Checkpoint(name="last", path="checkpoints/last", step=1, tensors=trunk_digest(model))]
    write_policy_set(world.root / "policy", listed, facts={})
    (world.root / "selected").mkdir()
    (world.root / "selected" / "selected.json").write_text(json.dumps({"checkpoint": "last"}))
    return world


class Policies:
    """Answers in token ids from the model in the folder that the request names; `changes` are the server's mistakes."""

    def __init__(self, world: World, folder: Path | None = None, **changes: Any) -> None:
        known = (world.model, world.root / "policy/checkpoints/last")
        self._models = {str(one): policy_of(one) for one in known}  # not in a thread: loading is not safe there
        self._folder, self._changes, self._lock = folder, changes, threading.Lock()

    def __call__(self, asked: Asked) -> Answer:
        body = {**asked.body, **self._changes}
        folder = str(self._folder or body["model"])
        decoding = Decoding(
            temperature=body["temperature"], top_p=body["top_p"], max_response_tokens=body["max_tokens"],
            stop_ids=tuple(body["stop_token_ids"]),
        )  # fmt: skip
        with self._lock:
            (one,) = sample(self._models[folder], [body["prompt"]], decoding, pad_id=PAD, seed=body["seed"])
        return completion(one.ids, one.finish_reason, body["prompt"])


def completion(ids: list[int] | None, finish: str, prompt: list[int] | None = None, **choice: Any) -> Answer:
    found = {"index": 0, "text": "", "token_ids": ids, "prompt_token_ids": prompt, "finish_reason": finish} | choice
    return Answer(raw=json.dumps({"model": "m", "choices": [found], "usage": {"completion_tokens": 3}}).encode())


def server_fields(**changes: Any) -> dict[str, Any]:
    return {"command": None, "model": "{model}", "tokens": "ids", "body": {}, "check_responses": 64} | changes


def connection(url: str | None, **changes: Any) -> dict[str, Any]:
    return {
        "url": url, "api_key_env": None, "concurrency": 4, "timeout_s": 60.0, "max_retries": 2, "deadline_s": 240.0,
        "start_timeout_s": 120.0, "backoff_s": 0.01,
    } | changes  # fmt: skip


def generate(
    world: World, work: Path, url: str | None, *, own: bool = True, log: Log | None = None, **config: Any
) -> tuple[list[dict[str, Any]], dict[str, Any], Log]:
    """Rows and facts of the stage, sampled by the server at `url`."""
    inputs = {"prompts": world.prompts, "sft": world.sft}
    if own:
        inputs |= {"policy": world.root / "policy", "selected": world.root / "selected"}
    out, log = world.out("served"), log or Log(work)
    told = {"server": server_fields(), "connection": connection(url)} | config
    evaluation.generate(CONFIG | told, inputs, out, log)
    return list(read_jsonl(out / "generations.jsonl")), json.loads((out / "facts.json").read_text()), log


def test_the_stage_measures_the_servers_samples_by_our_own_models(world: World, tmp_path: Path) -> None:
    with serving(Policies(world)) as server:
        rows, facts, log = generate(world, tmp_path / "w", server.url)
        again, _, _ = generate(world, tmp_path / "w2", server.url)
    packed = {row["prompt_id"]: row["ids"] for row in read_packed_prompts(world.prompts)}
    ids = [packed[row["prompt_id"]] for row in rows], [row["response_ids"] for row in rows]
    policy = world.root / "policy/checkpoints/last"
    for name, folder in (("seq_logprob", policy), ("ref_seq_logprob", world.model)):
        assert [row[name] for row in rows] == pytest.approx(sequence_logprobs(policy_of(folder), *ids, pad_id=PAD))
    assert all((row["response_ids"][-1] in STOPS) == (row["finish_reason"] == "stop") for row in rows)
    assert again == rows, "every request has a seed of its own, whatever the order of answers"
    assert facts["decoding"]["sampler"] == "server, ids"
    assert facts["served"]["responses"] == 64
    assert abs(facts["served"]["difference"]) < 5 * facts["served"]["standard_error"] + 0.01
    seeds = [asked.body["seed"] for asked in server.asked[: len(rows)]]
    assert len(set(seeds)) == len(rows)
    body = server.asked[0].body
    assert (body["model"], body["temperature"], body["top_k"], body["ignore_eos"]) == (str(policy), 1.0, -1, True)
    ((step, values),) = log.lines()
    assert step == 0
    assert values["sampling_cpu_s"] > 0
    assert values["sampling_wall_s"] > 0


@pytest.mark.parametrize(
    ("mistake", "decoding"),
    [
        ({"folder": "sft"}, {}),
        ({"temperature": 0.6}, {}),
        ({"temperature": 1.0}, {"temperature": 0.6}),
        ({"top_p": 1.0}, {"top_p": 0.5}),
        ({"top_p": 0.5}, {}),
    ],
)
def test_samples_of_something_else_are_refused_and_forgotten(
    world: World, tmp_path: Path, mistake: dict[str, Any], decoding: dict[str, Any]
) -> None:
    mistake = mistake | ({"folder": world.model} if "folder" in mistake else {})
    with serving(Policies(world, **mistake)) as server, pytest.raises(IntegrityError, match="not the policy's"):
        generate(world, tmp_path / "w", server.url, **decoding)
    assert not (tmp_path / "w" / KEPT_FILE).exists()


@pytest.mark.parametrize("temperature", [1.0, 0.7])
@pytest.mark.parametrize("top_p", [1.0, 0.6])
def test_own_samples_agree_within_the_stated_noise(world: World, temperature: float, top_p: float) -> None:
    """Over draws the difference has mean 0 and the stated standard error; in the wrong place it is many of them off."""
    model = tiny_model(world.tokenizer, seed=7)
    prompts = random_rows(np.random.default_rng(0), 64, end=False)
    decoding = Decoding(temperature=temperature, top_p=top_p, max_response_tokens=LENGTH, stop_ids=tuple(STOPS))
    z = []
    for seed in range(8):
        responses = [one.ids for one in sample(model, prompts, decoding, pad_id=PAD, seed=seed)]
        found = agreement(model, prompts, responses, decoding, 32)
        assert found.ok
        assert (found.responses, found.outside) == (32, 0)
        z.append(found.difference / found.standard_error)
    assert max(map(abs, z)) < 4
    assert 0.3 < float(np.std(z)) < 2.5
    shifted = Decoding(temperature=1.6, max_response_tokens=LENGTH, stop_ids=tuple(STOPS))
    assert not agreement(model, prompts, responses, shifted, 64).ok


Script = Callable[[Asked], Answer]


def failing(answers: Script, fault: Answer, at: Callable[[Asked], bool]) -> Script:
    """A server of which some requests get `fault`."""
    return lambda asked: fault if at(asked) else answers(asked)


@pytest.mark.parametrize(
    "fault",
    [
        Answer(status=429, raw=b"slow down", headers={"Retry-After": "0.01"}),
        Answer(status=500, raw=b"oops"),
        Answer(raw=b'{"choices": [{"token_ids": [3, '),
    ],
    ids=["429", "500", "truncated"],
)
def test_faults_are_tried_again(world: World, tmp_path: Path, fault: Answer) -> None:
    tried: set[int] = set()

    def first_try(asked: Asked) -> bool:
        seed = asked.body["seed"]
        if seed % 5 or seed in tried:
            return False
        tried.add(seed)
        return True

    with serving(failing(Policies(world), fault, first_try)) as server:
        rows, _, _ = generate(world, tmp_path / "w", server.url)
    assert len(rows) == 64
    assert len(server.asked) == 64 + len(tried) > 64


def test_a_server_that_dies_loses_nothing(world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOCAL_KEY", KEY)
    options = {"api_key_env": "LOCAL_KEY", "max_retries": 0}
    dead = Answer(status=503, raw=f"worker died, Authorization: Bearer {KEY}".encode())
    with serving(failing(Policies(world), dead, lambda asked: asked.number >= 40)) as server:
        told = {"connection": connection(server.url, **options)}
        with pytest.raises(SamplingError, match="run again") as failed:
            generate(world, tmp_path / "w", None, **told)
    assert failed.value.exit_code == 6
    assert KEY not in str(failed.value)
    kept = list(read_jsonl(tmp_path / "w" / KEPT_FILE))
    assert len(kept) == 40
    assert f"{len(kept)} of 64" in str(failed.value)
    with (tmp_path / "w" / KEPT_FILE).open("a") as file:
        file.write('{"row": 63, "ids": [3')  # killed while writing
    with serving(Policies(world)) as server:
        rows, _, _ = generate(world, tmp_path / "w", None, connection=connection(server.url, **options))
        assert len(server.asked) == 24
        whole, _, _ = generate(world, tmp_path / "w3", server.url)
    assert rows == whole
    _, before = next(iter(Log(tmp_path / "w").lines()))
    generate(world, tmp_path / "w", None, connection=connection("http://127.0.0.1:9", **options))  # nothing is asked
    assert list(Log(tmp_path / "w").lines()) == [(0, before)], "the time of all attempts"
    assert KEY not in "".join(path.read_text() for path in (tmp_path / "w").rglob("*") if path.is_file())


def test_a_stop_keeps_what_came(world: World, tmp_path: Path) -> None:
    log = Log(tmp_path / "w")
    answers = Policies(world)

    def script(asked: Asked) -> Answer:
        if asked.number == 20:
            log.stop_at = 0
        return answers(asked)

    with serving(script) as server, pytest.raises(StageInterrupted):
        generate(world, tmp_path / "w", server.url, log=log)
    assert 10 < len(list(read_jsonl(tmp_path / "w" / KEPT_FILE))) < 64


@pytest.mark.parametrize(
    ("answer", "error", "match"),
    [
        (Answer(status=400, raw=b'{"error": {"message": "too long"}}'), SamplingError, "refuses the request"),
        (Answer(status=404, raw=b"no such model"), SamplingError, "/completions"),
        (completion(None, "stop"), ConfigError, "no token ids"),
        (completion([40], "stop"), IntegrityError, "without a stop id"),
        (completion([40] * (LENGTH + 1), "length"), IntegrityError, "without a stop id"),
        (completion([40, STOPS[0]], "stop", [1, 2, 3]), IntegrityError, "prompt of 3 tokens"),
    ],
)
def test_what_is_no_response_of_ours_ends_at_once(
    world: World, tmp_path: Path, answer: Answer, error: type[Exception], match: str
) -> None:
    with serving(lambda _: answer) as server, pytest.raises(error, match=match):
        generate(world, tmp_path / "w", server.url)
    assert len(server.asked) == 1, "the first request goes alone"


def test_a_stop_token_that_the_server_leaves_out_is_put_back(world: World, tmp_path: Path) -> None:
    own = Policies(world)

    def script(asked: Asked) -> Answer:
        choice = json.loads(own(asked).data())["choices"][0]
        if choice["finish_reason"] == "stop":
            choice["stop_reason"] = choice["token_ids"].pop()
        return Answer(raw=json.dumps({"choices": [choice]}).encode())

    with serving(script) as server, serving(own) as whole:
        rows, _, _ = generate(world, tmp_path / "w", server.url)
        assert rows == generate(world, tmp_path / "w2", whole.url)[0]


# ---- started servers

SERVER = """
import http.server, json, sys, os
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200); self.send_header("Content-Length", "2"); self.end_headers(); self.wfile.write(b"ok")
    def log_message(self, *_): pass
print("serving", sys.argv[1], os.environ.get("PYTHONPATH"), flush=True)
open(sys.argv[3], "w").write(str(os.getpid()))
http.server.HTTPServer(("127.0.0.1", int(sys.argv[2])), Handler).serve_forever()
"""


def gone(pid: int) -> bool:
    for _ in range(100):
        try:
            os.kill(pid, 0)
            if Path(f"/proc/{pid}/stat").read_text().split()[2] == "Z":
                return True
        except (ProcessLookupError, FileNotFoundError):
            return True
        time.sleep(0.05)
    return False


def test_a_started_server_is_gone_afterwards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", "/ours")
    (tmp_path / "server.py").write_text(SERVER)
    command = f"{sys.executable} {tmp_path}/server.py {{model}} {{port}} {tmp_path}/pid"
    with started(command, tmp_path / "a policy", connection(None), tmp_path, lambda: False) as running:
        assert running.trouble() is None
        pid = int((tmp_path / "pid").read_text())
        assert running.url.startswith("http://127.0.0.1:")
    assert gone(pid)
    assert (tmp_path / "server.log").read_text().startswith(f"serving {tmp_path}/a policy None")


def test_no_server_outlives_a_killed_run(tmp_path: Path) -> None:
    (tmp_path / "server.py").write_text(SERVER)
    run = subprocess.Popen(
        [
            sys.executable, "-c",
            "import subprocess, sys, time; "
            "guard = subprocess.Popen(sys.argv[1:], stdin=subprocess.PIPE); time.sleep(60)",
            sys.executable, str(GUARD), sys.executable, str(tmp_path / "server.py"), "m", "0", str(tmp_path / "pid"),
        ]
    )  # fmt: skip
    for _ in range(200):
        if (tmp_path / "pid").exists() and (tmp_path / "pid").read_text():
            break
        time.sleep(0.05)
    os.kill(run.pid, signal.SIGKILL)
    run.wait()
    assert gone(int((tmp_path / "pid").read_text()))


@pytest.mark.parametrize(
    ("command", "match"),
    [
        ("no-such-server {model} {port}", "cannot start no-such-server"),
        (
            f"{sys.executable} -c \"raise SystemExit('token=abcdefgh {{model}} {{port}}')\"",
            r"exit code 1.*token=\*\*\*",
        ),
    ],
)
def test_a_server_that_does_not_start_is_told(tmp_path: Path, command: str, match: str) -> None:
    with (
        pytest.raises(SamplingError, match=match),
        started(command, tmp_path, connection(None), tmp_path, lambda: False),
    ):
        pass


# ---- the config

BASE = """
name: served
model: {world: helpdesk}
data: {world: helpdesk, pairs: 20}
arms: {dpo: {}, best_of_n: {n: 2}}
"""


def config_of(tmp_path: Path, sampling: str) -> Any:
    (tmp_path / "c.yaml").write_text(f"{BASE}sampling: {sampling}\n")
    return load_config(tmp_path / "c.yaml")


@pytest.mark.parametrize(
    ("sampling", "match"),
    [
        ("{server: {}}", "exactly one of command and url"),
        ("{server: {url: 'http://h/v1', command: 'x {model} {port}'}}", "exactly one"),
        ("{server: {command: 'vllm serve {model}'}}", "{port}"),
        ("{server: {command: 'vllm serve {model} --port {port} --api-key abc'}}", "api_key_env"),
        ("{server: {url: 'http://user:pw@h/v1'}}", "password"),
        ("{server: {url: 'http://h/v1', model: my-sft}}", "one policy, but dpo"),
        ("{cache: static, server: {url: 'http://h/v1'}}", "no effect"),
        ("{cache: fast}", "cache"),
    ],
)
def test_a_wrong_block_is_refused_before_anything_runs(tmp_path: Path, sampling: str, match: str) -> None:
    with pytest.raises(ConfigError, match=match):
        config_of(tmp_path, sampling)


def test_a_command_that_is_not_there_is_told_before_anything_runs(tmp_path: Path) -> None:
    command = "{server: {command: 'no-such-server {model} {port}'}}"
    with pytest.raises(ConfigError, match="no such program: no-such-server"):
        check_paths(config_of(tmp_path, command))
    check_paths(config_of(tmp_path, command.replace("no-such-server", sys.executable)))


def test_what_draws_is_part_of_the_comparison_and_where_it_is_reached_is_not(tmp_path: Path) -> None:
    def digest(sampling: str) -> str:
        return str(config_of(tmp_path, sampling).digest())

    plain, here = digest("{}"), digest("{server: {url: 'http://127.0.0.1:1/v1'}}")
    assert digest("null") == plain
    assert here == digest("{server: {url: 'https://elsewhere/v1', concurrency: 2, api_key_env: KEY}}")
    others = (
        "{cache: static}",
        "{server: {command: 'serve {model} {port}'}}",
        "{server: {url: 'http://h', tokens: text}}",
    )
    assert len({plain, here, *map(digest, others)}) == 5
    only = config_of(tmp_path, "{server: {url: 'http://h/v1'}}").model_dump()
    del only["arms"]["dpo"]
    only["sampling"]["server"]["model"] = "my-sft"
    assert isinstance(type(config_of(tmp_path, "{}")).model_validate(only).sampling.server, SamplingServer)
