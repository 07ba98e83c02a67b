"""Sampling by a server: the same ids, its faults, what is kept, and whether the responses can be the policy's own.

The scripted server speaks vLLM's completions protocol, token ids in and out, and draws from a real (tiny) model.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pipelines.graph import build_graph
from pipelines.judges import check_keys
from pipelines.sources import resolve_origin
from tests import bench
from tests.ml_helpers import PAD, STOPS, Log, World, add_policy, build_world, policy_of, random_rows, tiny_model
from tests.workbench.completions_server import Policies, completion
from tests.workbench.judging_server import Answer, Asked, serving
from workbench import generations
from workbench.config import SamplingServer, check_paths, load_config
from workbench.data.records_io import read_jsonl
from workbench.errors import ConfigError, IntegrityError, SamplingError, StageInterrupted
from workbench.packed import read_packed_prompts
from workbench.sampling import Decoding, sample
from workbench.sampling_check import agreement
from workbench.sampling_server import KEPT_FILE
from workbench.scoring import sequence_logprobs
from workbench.server_process import started
from workbench.store import Store

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
    add_policy(world, tiny_model(world.tokenizer, seed=7))
    return world


def policies(world: World, **changes: Any) -> Policies:
    return Policies(world.model, world.root / "policy/checkpoints/last", **changes)


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
    generations.generate(CONFIG | told, inputs, out, log)
    return list(read_jsonl(out / "generations.jsonl")), json.loads((out / "facts.json").read_text()), log


def test_the_stage_measures_the_servers_samples_by_our_own_models(world: World, tmp_path: Path) -> None:
    with serving(policies(world)) as server:
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


def test_samples_of_another_policy_are_refused_and_forgotten(world: World, tmp_path: Path) -> None:
    with (
        serving(policies(world, folder=world.model)) as server,
        pytest.raises(IntegrityError, match="not the policy's"),
    ):
        generate(world, tmp_path / "w", server.url)
    assert not (tmp_path / "w" / KEPT_FILE).exists()


def decoding_of(**changes: Any) -> Decoding:
    return Decoding(**({"max_response_tokens": LENGTH, "stop_ids": tuple(STOPS)} | changes))


@pytest.mark.parametrize(
    ("drawn", "stated"),
    [({"temperature": 0.6}, {}), ({}, {"temperature": 0.6}), ({}, {"top_p": 0.5}), ({"top_p": 0.5}, {})],
)
def test_another_distribution_is_told(world: World, drawn: dict[str, Any], stated: dict[str, Any]) -> None:
    model = tiny_model(world.tokenizer, seed=7)
    prompts = random_rows(np.random.default_rng(0), 128, end=False)
    responses = [one.ids for one in sample(model, prompts, decoding_of(**drawn), pad_id=PAD, seed=0)]
    assert agreement(model, None, prompts, responses, decoding_of(**stated), 128).faults


@pytest.mark.parametrize("temperature", [1.0, 0.7])
@pytest.mark.parametrize("top_p", [1.0, 0.6])
def test_own_samples_agree_within_the_stated_noise(world: World, temperature: float, top_p: float) -> None:
    """Over draws the difference has mean 0 and the stated standard error; in the wrong place it is many of them off."""
    model = tiny_model(world.tokenizer, seed=7)
    prompts = random_rows(np.random.default_rng(0), 64, end=False)
    decoding = decoding_of(temperature=temperature, top_p=top_p)
    z = []
    for seed in range(8):
        responses = [one.ids for one in sample(model, prompts, decoding, pad_id=PAD, seed=seed)]
        found = agreement(model, None, prompts, responses, decoding, 32)
        assert not found.faults
        assert (found.responses, found.outside) == (32, 0)
        z.append(found.difference / found.standard_error)
    assert max(map(abs, z)) < 4
    assert 0.3 < float(np.std(z)) < 2.5
    shifted = decoding_of(temperature=1.6)
    assert agreement(model, None, prompts, responses, shifted, 64).faults


def test_the_weights_that_the_policy_started_from_are_told_from_it(world: World) -> None:
    """Trained a little, so that what each token's probability says alone would let the SFT's samples pass."""
    reference, policy = (tiny_model(world.tokenizer, seed=7) for _ in range(2))
    generator = torch.Generator().manual_seed(0)
    for one in policy.parameters():
        one += 0.1 * one.std() * torch.randn(one.shape, generator=generator)
    prompts = random_rows(np.random.default_rng(0), 128, end=False)
    decoding = decoding_of()
    for seed in range(4):
        own, other = (
            [one.ids for one in sample(model, prompts, decoding, pad_id=PAD, seed=seed)]
            for model in (policy, reference)
        )
        found = agreement(policy, reference, prompts, own, decoding, 128)
        assert not found.faults
        assert 0 < found.leaning_expected < 0.3, "nats a token"
        assert abs(found.leaning) < 4 * found.leaning_error
        assert not agreement(policy, None, prompts, other, decoding, 128).faults
        (fault,) = agreement(policy, reference, prompts, other, decoding, 128).faults
        assert "as if the SFT had drawn them" in fault


def test_answers_from_a_cache_are_told(world: World) -> None:
    model = tiny_model(world.tokenizer, seed=7)
    prompts = [row for row in random_rows(np.random.default_rng(0), 64, end=False) for _ in range(2)]
    decoding = decoding_of()
    own = [one.ids for one in sample(model, prompts, decoding, pad_id=PAD, seed=0)]
    found = agreement(model, None, prompts, own, decoding, 128)
    assert not found.faults
    assert abs(found.repeats - found.repeats_expected) < 4 * found.repeats_error + 1
    cached = [one for one in own[::2] for _ in range(2)]
    (fault,) = agreement(model, None, prompts, cached, decoding, 128).faults
    assert "repeat the one before" in fault


FAULTS = (
    Answer(status=429, raw=b"slow down", headers={"Retry-After": "0.01"}),
    Answer(status=500, raw=b"oops"),
    Answer(raw=b'{"choices": [{"token_ids": [3, '),  # torn
)


def test_faults_are_tried_again(world: World, tmp_path: Path) -> None:
    own, tried = policies(world), dict[int, Answer]()

    def script(asked: Asked) -> Answer:
        seed = asked.body["seed"]
        if asked.number % 5 or seed in tried:
            return own(asked)
        return tried.setdefault(seed, FAULTS[len(tried) % 3])

    with serving(script) as server:
        rows, _, _ = generate(world, tmp_path / "w", server.url)
    assert len(rows) == 64
    assert len(server.asked) == 64 + len(tried)
    assert len(tried) > 6
    assert len(list(read_jsonl(tmp_path / "w" / KEPT_FILE))) == 64, "each once"


def test_a_server_that_dies_loses_nothing(world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOCAL_KEY", KEY)
    options = {"api_key_env": "LOCAL_KEY", "max_retries": 0}
    dead = Answer(status=503, raw=f"worker died, Authorization: Bearer {KEY}".encode())
    own = policies(world)
    with serving(lambda asked: dead if asked.number >= 40 else own(asked)) as server:
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
    with serving(policies(world)) as server:
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
    answers = policies(world)

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
    own = policies(world)

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


RUN = """
import sys, time
from pathlib import Path
from workbench import server_process
with server_process.started(sys.argv[1], Path("m"), {"start_timeout_s": 120.0}, Path(sys.argv[2]), lambda: False):
    print("up", flush=True)
    time.sleep(600)
"""


def test_no_server_outlives_a_run_that_is_killed_with_its_session(tmp_path: Path) -> None:
    """As a worker ends all that is of its session, at once, where its driver has died."""
    (tmp_path / "server.py").write_text(SERVER)
    command = f"{sys.executable} {tmp_path}/server.py {{model}} {{port}} {tmp_path}/pid"
    run = subprocess.Popen(
        [sys.executable, "-c", RUN, command, str(tmp_path)],
        stdout=subprocess.PIPE, env=bench.environment(), start_new_session=True,
    )  # fmt: skip
    assert run.stdout is not None
    assert run.stdout.readline() == b"up\n"
    os.killpg(run.pid, signal.SIGKILL)
    run.communicate()
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
        ("{server: {command: 'env VLLM_API_KEY=abc vllm serve {model} --port {port}'}}", "holds a key"),
        ("{server: {url: 'http://user:pw@h/v1'}}", "password"),
        ("{server: {url: 'http://h/v1?api-key=abc'}}", "a key"),
        ("{server: {url: 'http://h/v1', body: {seed: 1, top_k: 0}}}", "got seed, which"),
        ("{server: {url: 'http://h/v1', body: {hub_token: abc}}}", "holds a key"),
        ("{server: {url: 'http://h/v1'}}\ndecision: {max_cost_per_answer: {cpu_s: 1.0}}", "seconds are not measured"),
        ("{server: {url: 'http://h/v1', model: my-sft}}", "one policy, but dpo"),
        ("{cache: static, server: {url: 'http://h/v1'}}", "no effect"),
        ("{cache: fast}", "cache"),
    ],
)
def test_a_wrong_block_is_refused_before_anything_runs(tmp_path: Path, sampling: str, match: str) -> None:
    with pytest.raises(ConfigError, match=match):
        config_of(tmp_path, sampling)


def test_what_is_not_on_this_machine_is_told_before_anything_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    command = "{server: {command: 'no-such-server {model} {port}'}}"
    with pytest.raises(ConfigError, match="no such program: no-such-server"):
        check_paths(config_of(tmp_path, command))
    check_paths(config_of(tmp_path, command.replace("no-such-server", sys.executable)))
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(ConfigError, match=r"sampling\.cache: got compiled.*no-such-compiler"):
        check_paths(config_of(tmp_path, "{cache: compiled}"))


def test_a_key_that_is_not_there_is_told_before_anything_runs(tmp_path: Path) -> None:
    comparison = config_of(tmp_path, "{server: {url: 'http://h/v1', api_key_env: NO_SUCH_KEY}}")
    store = Store.open(tmp_path / "home")
    graph = build_graph(comparison, resolve_origin(comparison, store))
    with pytest.raises(ConfigError, match=r"sampling\.server\.api_key_env: the environment variable NO_SUCH_KEY"):
        check_keys(graph, store)


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
