"""Endpoints without a key, found before anything runs; judges that cannot judge, survived and told apart."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterator, Mapping
from typing import Any

from pipelines.graph import Graph, build_graph
from workbench.config import LLMJudge
from workbench.errors import ConfigError, JudgingError
from workbench.outcome import Outcome
from workbench.stages import plan
from workbench.store import Store


def check_keys(graph: Graph, store: Store) -> None:
    """Refuses an endpoint whose key is not in the environment, if there is still something to ask it.

    Raises:
        ConfigError: The variable that `api_key_env` names is not set.
    """
    for where, variable, asking in _endpoints(graph):
        if variable is None or os.environ.get(variable):
            continue
        if any(not one.cached for one in plan(list(graph.stages.values()), store) if one.instance in asking):
            raise ConfigError(
                f"the environment variable {variable} is not set; expected it to hold the endpoint's key. Export it, "
                "or write null where the endpoint needs none",
                where=f"{where}.api_key_env",
            )


def _endpoints(graph: Graph) -> Iterator[tuple[str, str | None, set[str]]]:
    """Each judge's and the sampling server's place in the config, variable, and stages that ask it."""
    stages = graph.stages.items()
    for name in graph.comparison.evaluation.judges:
        judge = graph.comparison.judges.get(name)
        if isinstance(judge, LLMJudge):
            asking = {one for one, stage in stages if stage.name == "judgments" and stage.config["name"] == name}
            yield f"judges.{name}", judge.api_key_env, asking
    server = graph.comparison.sampling.server
    if server is not None:
        yield "sampling.server", server.api_key_env, {one for one, stage in stages if "server" in stage.config}


def unfinished_judges(graph: Graph, outcome: Outcome) -> dict[str, str]:
    """Judge -> why it did not finish, where that is all that failed and another judge is left; else nothing."""
    failed = {
        str(graph.stages[instance].config["name"]): error.message
        for instance, error in outcome.failures.items()
        if isinstance(error, JudgingError)
    }
    others = [name for name in graph.comparison.evaluation.judges if name not in failed]
    only = all(isinstance(error, JudgingError) for error in outcome.failures.values())
    return failed if only and others else {}


def without_judges(graph: Graph, names: Collection[str]) -> Graph:
    """The graph of the same comparison by its other judges."""
    evaluation = graph.comparison.evaluation
    kept = [name for name in evaluation.judges if name not in names]
    comparison = graph.comparison.model_copy(update={"evaluation": evaluation.model_copy(update={"judges": kept})})
    return build_graph(comparison, graph.origin)


def silent_judges(judges: Mapping[str, Mapping[str, Any]]) -> dict[str, str]:
    """Judge -> why it says nothing, for judges of whose verdicts not one could be used.

    Args:
        judges: The section of results.json.
    """
    found = {}
    for name, judge in judges.items():
        if judge["asked"] and not judge["scored"]:
            reasons = ", ".join(f"{count} {reason}" for reason, count in judge["unscored"].items())
            found[name] = f"none of its {judge['asked']} verdicts can be used ({reasons})"
            if judge["other_items"]:
                found[name] += (
                    f"; {judge['other_items']} filled-in rows are about other pairs: was the sheet exported from "
                    "these generations?"
                )
    return found
