"""A whole comparison whose samples are drawn by a server that speaks vLLM's protocol."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.bench import UNTRACKED, compare, copy_home, rows
from tests.workbench.completions_server import Policies
from tests.workbench.judging_server import serving

KEY = "kept-nowhere-4711"
SAMPLED = {
    "generations[sft,test,seed=0]", "generations[ppo,test,seed=0]", "generations[dpo,test,seed=0]",
    "candidates[test,seed=0]",
}  # fmt: skip


@pytest.mark.slow
def test_a_comparison_by_a_server(smoke_home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SERVER_KEY", KEY)
    home = copy_home(smoke_home, tmp_path / "home")

    def words(url: str) -> list[str]:
        server = f"sampling.server={{url: '{url}', api_key_env: SERVER_KEY}}"
        return [*UNTRACKED, "--set", "evaluation.prompts=8", "--set", server]

    with serving(Policies()) as server:
        results = compare("smoke", home, *words(server.url))
    assert results["match"]["ok"]
    (decoding,) = (one for one in results["match"]["checks"] if one["name"] == "same_decoding")
    assert "sampler='server, ids'" in decoding["detail"]
    assert all(arm["win_rate"]["value"] is not None for label, arm in results["arms"].items() if label != "sft")
    built = {name for name, row in rows(results).items() if not row["cached"]}
    assert built >= SAMPLED
    assert not {name for name in built if name.startswith(("sft", "ppo", "dpo", "reward_model"))}, (
        "none is trained anew"
    )
    for name in SAMPLED:
        folder = home / "store" / rows(results)[name]["key"]
        assert json.loads((folder / "out" / "facts.json").read_text())["served"]["repeats_expected"] >= 0
    seeds = [asked.body["seed"] for asked in server.asked]
    assert len(set(seeds)) == len(seeds), "over all policies"
    assert all(asked.headers["Authorization"] == f"Bearer {KEY}" for asked in server.asked)
    kept = [path for path in home.rglob("*") if path.is_file()]
    assert not [path for path in kept if KEY.encode() in path.read_bytes()]
    assert not [path for path in kept if "store" in path.parts and server.url.encode() in path.read_bytes()]

    again = compare("smoke", home, *words("http://127.0.0.1:9/v1"))  # elsewhere, where nobody answers
    assert all(row["cached"] for row in again["stages"])
