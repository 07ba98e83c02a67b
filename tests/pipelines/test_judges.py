"""Judges beside gold and proxy in a whole comparison: a model at an endpoint, a reward model, people."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.bench import UNTRACKED, compare, copy_home, forget, rows, workbench
from tests.workbench.judging_server import Answer, Asked, Server, longer, says, serving
from workbench.judging.records import JUDGMENTS_FILE, read_judgments
from workbench.types import Judgment

SELECTED = "select[dpo,seed=0]"
ARMS = ("ppo", "dpo", "best_of_n", "best_of_n-implicit")


@pytest.fixture
def home(smoke_home: Path, tmp_path: Path) -> Path:
    return copy_home(smoke_home, tmp_path / "home")


@pytest.fixture
def server() -> Iterator[Server]:
    with serving(longer) as one:
        yield one


def llm(server: Server, *more: str) -> list[str]:
    """Settings of a run that an endpoint judges beside gold."""
    block = f"{{kind: llm, url: '{server.url}', model: scripted-1, pairs_per_prompt: 2, max_retries: 0}}"
    words = [f"judges.gpt={block}", "evaluation.judges=[gold, gpt]", *more]
    return [*UNTRACKED, *(word for one in words for word in ("--set", one))]


def rate(results: dict[str, Any], arm: str, judge: str) -> dict[str, Any]:
    (found,) = (one for one in results["arms"][arm]["win_rates"] if one["judge"] == judge)
    return dict(found)


def null(results: dict[str, Any], arm: str, judge: str) -> dict[str, Any]:
    (found,) = (one for one in results["arms"][arm]["null_win_rates"] if one["judge"] == judge)
    return dict(found)


def test_null_judges_run_beside_every_comparison(smoke_home: Path) -> None:
    results = json.loads((smoke_home / "stdout.json").read_text())
    for arm in ARMS:
        assert null(results, arm, "null/first")["value"] == 0.5  # both orders: position cancels
        assert null(results, arm, "null/constant")["value"] == 0.5
        assert null(results, arm, "null/constant")["low"] < 0.5  # an interval is never of zero width
        assert 0 <= null(results, arm, "null/longest")["value"] <= 1
    assert results["arms"]["sft"]["null_win_rates"] == []


def test_verdicts_leave_the_comparison_as_a_file(smoke_home: Path) -> None:
    results = json.loads((smoke_home / "stdout.json").read_text())
    verdicts = read_judgments(smoke_home / "results" / "smoke" / JUDGMENTS_FILE)
    assert {(one.first, one.second, one.judge) for one in verdicts} == {("sft", arm, "gold") for arm in ARMS}
    assert len(verdicts) == len(ARMS) * 16 * 2  # sample i against sample i, at every prompt
    for arm in ARMS:
        said = [one.preference for one in verdicts if one.second == arm]
        assert None not in said
        # All pairs of samples in the one, sample i against sample i in the other: the same quantity.
        assert sum(map(float, filter(None, said))) / len(said) == pytest.approx(
            results["arms"][arm]["win_rate"]["value"], abs=0.2
        )


def test_an_endpoint_judges_both_orders_of_every_pair(home: Path, server: Server) -> None:
    results = compare("smoke", home, *llm(server))
    judge = results["judges"]["gpt"]
    assert (judge["kind"], judge["models"]) == ("llm", ["scripted-1"])
    assert judge["pairs"] == len(ARMS) * 16 * 2
    assert judge["asked"] == judge["scored"] == 2 * (judge["pairs"] - judge["identical"])
    assert judge["flip_rate"]["value"] == 0.0
    assert judge["unscored"] == {}
    assert judge["first_shown_preferred"]["value"] == judge["null_first"]["value"] == 0.5
    for arm in ARMS:  # the script prefers the longer text, as that null judge does, on the same pairs
        assert rate(results, arm, "gpt")["value"] == pytest.approx(null(results, arm, "null/longest")["value"])
        assert rate(results, arm, "gpt")["p_holm"] is not None
    assert {row["instance"] for row in results["stages"] if not row["cached"]} == {
        *(f"judgments[gpt,{arm},sft,seed=0]" for arm in ARMS), "samples", "measure"
    }  # fmt: skip
    asked = len(server.asked)
    again = compare("smoke", home, *llm(server, "judges.gpt.concurrency=1"))
    assert len(server.asked) == asked  # where and how it is reached is in no key
    assert all(row["cached"] for row in again["stages"] if row["name"] == "judgments")


def test_a_judge_that_dies_ends_with_6_and_goes_on_where_it_was(home: Path) -> None:
    alive = [40]

    def dying(asked: Asked) -> Answer:
        alive[0] -= 1
        return longer(asked) if alive[0] >= 0 else Answer(status=503, raw=b"{}")

    with serving(dying) as server:
        words = llm(server)
        forget(home, [rows(json.loads((home / "results" / "smoke" / "results.json").read_text()))[SELECTED]["key"]])
        results = compare("smoke", home, *words, code=6)
        assert not rows(results)[SELECTED]["cached"]  # it ran in this command, before the judge failed
        assert any("'gpt' did not finish" in line for line in results["warnings"])
        assert results["judging_incomplete"].keys() == {"gpt"}
        assert results["judges"] == {}
        assert [one["judge"] for one in results["arms"]["dpo"]["win_rates"]] == ["gold"]
        answered = 40
        asked_before = len(server.asked)
        alive[0] = 10**6
        results = compare("smoke", home, *words)
        assert results["judging_incomplete"] == {}
        assert results["judges"]["gpt"]["scored"] == results["judges"]["gpt"]["asked"]
        asked_again = len(server.asked) - asked_before
        assert (
            asked_again <= results["judges"]["gpt"]["requests"] - answered + 4
        )  # what was under way may be asked twice


def test_the_only_judge_that_dies_leaves_no_results(home: Path) -> None:
    (home / "results" / "smoke" / "results.json").unlink()
    with serving(lambda asked: Answer(status=401, raw=b'{"error": "no"}')) as server:
        done = workbench("compare", "smoke", "--home", home, "--json", *llm(server), "--set", "evaluation.judges=[gpt]")
    assert done.code == 6
    assert done.json["error"]["code"] == "judging"
    assert not (home / "results" / "smoke" / "results.json").exists()


def test_a_judge_that_says_nothing_usable_is_no_judge(home: Path) -> None:
    with serving(lambda asked: Answer("blue, I think")) as server:
        results = compare("smoke", home, *llm(server, "evaluation.judges=[gpt, gold]"), code=6)
    assert results["judging_incomplete"]["gpt"].startswith("none of its")
    assert results["arms"]["dpo"]["win_rate"]["value"] is None
    assert rate(results, "dpo", "gold")["value"] is not None


def test_a_key_that_is_not_set_is_found_before_anything_runs(home: Path, server: Server) -> None:
    words = llm(server, "judges.gpt.api_key_env=A_KEY_THAT_NOBODY_SET")
    done = workbench("compare", "smoke", "--home", home, *words)
    assert done.code == 2
    assert "judges.gpt.api_key_env" in done.stderr
    assert "A_KEY_THAT_NOBODY_SET is not set" in done.stderr
    assert "started" not in done.stderr
    assert server.asked == []


def test_missing_verdicts_that_differ_by_arm_withhold_the_rate(home: Path) -> None:
    texts = {
        one["response"]
        for row in rows(json.loads((home / "results" / "smoke" / "results.json").read_text())).values()
        if row["instance"] == "generations[dpo,test,seed=0]"
        for one in map(json.loads, (home / "store" / row["key"] / "out" / "generations.jsonl").read_text().splitlines())
    }

    def shy(asked: Asked) -> Answer:
        return Answer("blue, I think") if {asked.a, asked.b} & texts else says("tie")

    with serving(shy) as server:
        results = compare("smoke", home, *llm(server), code=6)
    judge = results["judges"]["gpt"]
    assert "dpo 100.0%" in judge["uneven"]
    assert judge["unscored"]["unparseable"] > 0
    for arm in ARMS:
        assert rate(results, arm, "gpt")["value"] is None
        assert rate(results, arm, "gpt")["method"].startswith("withheld")
        assert rate(results, arm, "gold")["value"] is not None
    assert any("gpt" in line for line in results["warnings"])


def test_a_reward_model_of_the_proxys_lineage_is_told_apart(home: Path) -> None:
    first = json.loads((home / "results" / "smoke" / "results.json").read_text())
    folder = home / "store" / rows(first)["reward_model[main,seed=0]"]["key"] / "out" / "checkpoints" / "last"
    words = [f"judges.rm={{kind: reward_model, folder: {folder}}}", "evaluation.judges=[gold, rm]"]
    results = compare("smoke", home, *UNTRACKED, *(word for one in words for word in ("--set", one)))
    assert "trunk of proxy" in results["judges"]["rm"]["lineage"]
    assert any("trunk of proxy" in line for line in results["warnings"])
    duels = [one for one in results["head_to_head"] if one["judge"] == "rm"]
    assert len(duels) == 5  # every two arms, but the two best-of-n arms, which draw from one pool
    assert all(one["win_rate"]["value"] is not None for one in duels)


def test_people_judge_a_blind_sheet(home: Path, tmp_path: Path) -> None:
    sheet = tmp_path / "sheet"
    block = f"judges.people={{kind: human, verdicts: {sheet}, pairs_per_prompt: 2}}"
    early = workbench("compare", "smoke", "--home", home, "--set", block, "--set", "evaluation.judges=[people]")
    assert early.code == 2
    assert "workbench judge export" in early.stderr
    exported = workbench("judge", "export", "smoke", "people", sheet, "--home", home, "--set", block, "--json")
    assert exported.code == 0, exported.stderr
    with (sheet / "pairs.csv").open(newline="", encoding="utf-8") as file:
        header, *table = list(csv.reader(file))
    assert not {"sft", *ARMS} & set(header)
    choice, first, second = (header.index(name) for name in ("choice", "response_1", "response_2"))
    for number, row in enumerate(table):  # a person who likes long texts and skips a pair now and then
        longest = "1" if len(row[first]) > len(row[second]) else "2" if len(row[first]) < len(row[second]) else "tie"
        row[choice] = "" if number % 50 == 49 else longest
    with (sheet / "pairs.csv").open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([header, *table])
    results = compare(
        "smoke", home, *UNTRACKED, "--set", block, "--set", "evaluation.judges=[people, gold]",
    )  # fmt: skip
    judge = results["judges"]["people"]
    assert judge["asked"] - judge["scored"] == sum(judge["unscored"].values()) > 0
    for arm in ARMS:
        assert results["arms"][arm]["win_rate"]["judge"] == "people"
        assert rate(results, arm, "people")["value"] == pytest.approx(
            null(results, arm, "null/longest")["value"], abs=0.04
        )
    verdicts: list[Judgment] = read_judgments(home / "results" / "smoke" / JUDGMENTS_FILE)
    assert {one.judge for one in verdicts} == {"people", "gold"}


def test_export_says_what_it_needs(home: Path, tmp_path: Path) -> None:
    done = workbench("judge", "export", "smoke", "people", tmp_path / "sheet", "--home", home)
    assert done.code == 2
    assert "expected a judge of kind human (the config has none)" in done.stderr
    block = f"judges.people={{kind: human, verdicts: {tmp_path / 'x.csv'}}}"
    done = workbench("judge", "export", "smoke", "people", tmp_path / "s", "--home", tmp_path / "new", "--set", block)
    assert done.code == 2
    assert "nothing to judge yet" in done.stderr
