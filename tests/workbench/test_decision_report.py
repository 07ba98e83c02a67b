"""How decision, diversity and annotators are shown: terminal, report, MLflow; files without them stay readable."""

from __future__ import annotations

import copy
import io
from pathlib import Path
from typing import Any

import pytest
from results_example import estimate
from results_example import results as example
from rich.console import Console

from workbench import tracking_names as names
from workbench.config import Decision as Rule
from workbench.decide import decide
from workbench.report.mlflow_pages import comparison_page
from workbench.report.summary import markdown
from workbench.report.terminal import make_console, print_results
from workbench.results import Results

DIVERSITY = ("distinct_1", "distinct_2", "self_bleu", "similarity_within", "similarity_between", "entropy_per_token")


def results(judge: str = "gold") -> dict[str, Any]:
    data = copy.deepcopy(example())
    for label, arm in data["arms"].items():
        measures = {name: estimate(0.4, 0.01) for name in DIVERSITY}
        if label == "best_of_n":
            measures["entropy_per_token"] = estimate(None) | {"method": "not known"}
        change = {} if label == "sft" else {"distinct_2": estimate(-0.1, 0.01)}
        arm["diversity"] = measures | {"tokens_compared": 96.5, "against_sft": change}
        if label != "sft":
            arm["by_annotator"] = {"careful": estimate(0.7, 0.02), "hasty": estimate(0.62, 0.02)}
            arm["minority_win_rate"] = estimate(0.62, 0.02)
            arm["minority_gap"] = estimate(0.08, 0.01)
    agreed = {"careful": estimate(0.8, 0.02), "hasty": estimate(0.7, 0.02)}
    data["annotators"] = {"kind": "expected_win_rate", "leave_one_out": agreed, "minority": ["hasty"], "reason": None}
    read = Results.model_validate(data)
    decided = read.model_copy(update={"decision": decide(read, Rule(), judge)})
    return decided.model_dump(mode="json", by_alias=True)


def shown(data: dict[str, Any]) -> str:
    file = io.StringIO()
    print_results(data, make_console(file=file))
    return file.getvalue()


def test_the_terminal_ends_with_the_decision_in_100_columns() -> None:
    text = shown(results())
    assert max(map(len, text.splitlines())) <= 100 + len("sqlite:////home/me/mlruns/mlflow.db")  # paths are not broken
    told = " ".join(text.split())
    assert "Decision: Among these checkpoints" in told
    assert told.index("Decision:") > told.index("Match certificate") > told.index("head to head")
    assert "has the highest" not in told  # said once, and by the decision
    row = next(line for line in text.splitlines() if "0.62 [0.60, 0.64]" in line)
    assert row.split()[0] == "ppo"


def test_the_report_ends_with_it_and_has_its_evidence() -> None:
    text = markdown(results())
    assert text.index("## Decision") > text.index("## Caveats")
    assert "## Diversity" in text
    assert "ppo less sft" in text
    assert "| hasty (minority) | 0.70 [0.68, 0.72] | 0.62 [0.60, 0.64] |" in text
    assert "| the others less the minority | - | 0.08 [0.07, 0.09] |" in text
    assert "Decision:" in comparison_page(results(), [])


def test_without_a_decision_the_verdict_is_shown() -> None:
    old = example()
    assert "has the highest" in " ".join(shown(old).split())
    assert "## Decision" not in markdown(old)
    assert "## Diversity" not in markdown(old)
    assert "has the highest" in comparison_page(old, [])


def test_no_decision_says_why() -> None:
    data = results("proxy")
    assert data["decision"]["verdict"] == "none"
    assert "No decision: the first judge is the proxy" in " ".join(shown(data).split())
    assert "| pair |" not in markdown(data).split("## Decision")[1].split("## Provenance")[0]


def test_annotators_that_are_not_known_say_why() -> None:
    data = results()
    data["annotators"] = {"kind": None, "leave_one_out": {}, "minority": [], "reason": "nobody signed"}
    for arm in data["arms"].values():
        arm["by_annotator"] = {}
    assert "Not known: nobody signed." in markdown(data)


def test_mlflow_gets_metrics_and_tags_that_are_documented() -> None:
    data = results()
    metrics = names.headline_metrics(data)
    assert metrics["distinct_2/ppo"] == 0.4
    assert metrics["minority_win_rate/ppo"] == 0.62
    assert metrics["by_annotator_hasty/ppo"] == 0.62
    assert "entropy_per_token/best_of_n" not in metrics
    page = (Path(__file__).parents[2] / "docs" / "metrics.md").read_text()
    for name in (*DIVERSITY, "minority_win_rate", "minority_gap", "by_annotator_NAME"):
        assert f"`{name}/ARM`" in page
    tags = names.decision_tags(data)
    assert tags["decision"] == data["decision"]["verdict"]
    assert tags["decision.scope"] == "checkpoints"
    assert tags["match.ok"] == "true"
    assert all(f"`{tag}`" in page for tag in tags)
    assert names.decision_tags({}) == {"match.ok": "unknown"}


@pytest.mark.parametrize("hostile", ["\x1b[31mred", "<script>x</script>", "a|b"])
def test_hostile_names_stay_text(hostile: str) -> None:
    data = results()
    data["decision"]["sentence"] = f"{hostile} wins"
    data["annotators"]["minority"] = [hostile]
    data["annotators"]["leave_one_out"] = {hostile: estimate(0.5)}
    assert "\x1b" not in shown(data)
    text = markdown(data)
    assert "<script>" not in text
    assert "| a|b" not in text
    assert "\x1b" not in text
    print_results(data, Console(file=io.StringIO(), force_terminal=True, width=100))
