"""Two comparisons against each other: what changed in config and data, and in the numbers, with intervals.

A difference is B less A. Two runs are independent but for the prompts that they share: where both kept their samples
on the same test prompts, the covariance over prompts is taken off (paired), else both intervals count in full.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

from workbench.versus_base import INDEPENDENT, PAIRED, Change, Run, Versus
from workbench.versus_numbers import numbers


def versus(a: Run, b: Run) -> Versus:
    """Everything that is not the same."""
    arms = [set(run.results["arms"]) for run in (a, b)]
    keys = [run.keys() for run in (a, b)]
    shared = keys[0].keys() & keys[1].keys()
    changed = [Change(name=one, a=keys[0][one][:12], b=keys[1][one][:12]) for one in keys[0]
               if one in shared and keys[0][one] != keys[1][one]]  # fmt: skip
    paired, told = _pairing(a, b)
    return Versus(
        a=a.name,
        b=b.name,
        a_seeds=a.results["seeds"]["runs"],
        b_seeds=b.results["seeds"]["runs"],
        pairing=told,
        config=None if a.config is None or b.config is None else changes(_flat(a.config), _flat(b.config)),
        facts=changes(_facts(a), _facts(b)),
        stages_same=len(shared) - len(changed),
        stages_changed=changed,
        arms_only_a=[label for label in a.results["arms"] if label not in arms[1]],
        arms_only_b=[label for label in b.results["arms"] if label not in arms[0]],
        numbers=list(numbers(a, b, paired)),
        notes=list(_notes(a, b)),
    )


# ------------------------------------------------------------------------------------------ config and data


def changes(a: Mapping[str, str], b: Mapping[str, str]) -> list[Change]:
    """Entries that differ, A's order first."""
    names = dict.fromkeys([*a, *b])
    return [Change(name=name, a=a.get(name), b=b.get(name)) for name in names if a.get(name) != b.get(name)]


def _flat(value: Any, path: str = "") -> dict[str, str]:
    if isinstance(value, Mapping) and value:
        return {
            name: text for key, one in value.items() for name, text in _flat(one, f"{path}.{key}".strip(".")).items()
        }
    return {path: json.dumps(value, ensure_ascii=False)}


def _facts(run: Run) -> dict[str, str]:
    words = {True: "passed", False: "FAILED"}
    return {one["name"]: f"{words.get(one['ok'], 'not applicable')}: {one['detail']}"
            for one in run.results["match"]["checks"] if one["name"] != "cost_recorded"}  # fmt: skip


def _pairing(a: Run, b: Run) -> tuple[bool, str]:
    if not a.samples or not b.samples:
        missing = " and ".join(name for name, run in (("A", a), ("B", b)) if not run.samples)
        return False, f"{INDEPENDENT}: {missing} kept no samples, so nothing can be paired; intervals may be too wide"
    shared = {prompt for prompt, text in a.prompts.items() if b.prompts.get(prompt) == text}
    if len(shared) == len(a.prompts) == len(b.prompts):
        return True, f"{PAIRED}: both were measured on the same {len(shared)} test prompts"
    return False, (
        f"{INDEPENDENT}: {len(shared)} test prompts are in both (A has {len(a.prompts)}, B {len(b.prompts)}), so the "
        "differences are of arms and of prompts"
    )


def _notes(a: Run, b: Run) -> Iterator[str]:
    for words, run in (("A", a), ("B", b)):
        if not run.results["match"]["ok"]:
            yield f"{words}'s match certificate failed: its arms are not comparable among themselves."
    if a.keys("sft") != b.keys("sft"):
        yield "The SFT policies differ: win rates, gains and KL are each against the run's own."
    seeds = min(len(run.results["seeds"]["runs"]) for run in (a, b))
    if seeds < 2:
        yield "With one run seed a difference is between checkpoints: training it again would move it too."
    for name in sorted(a.results["judges"].keys() & b.results["judges"].keys()):
        models = [run.results["judges"][name]["models"] for run in (a, b)]
        if models[0] != models[1]:
            yield f"Judge {name} answered as {', '.join(models[0]) or '?'} in A, as {', '.join(models[1]) or '?'} in B."
