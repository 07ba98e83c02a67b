"""What the report and the terminal say of the reward apart from the optimizer: crossed cells, the gap, the tilts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from workbench.report.markup import escape, table
from workbench.report.wording import interval, number

MEASURES = {"gold_reward": "gold", "proxy_reward": "proxy", "win_rate": "win rate"}
OPTIMIZERS = {"ppo": "PPO", "best_of_n": "best-of-n", "direct": "DPO on its labels"}


def lines(results: Mapping[str, Any]) -> list[str]:
    """One line a measure about the gap, and one about perfect optimizers; empty where there is neither."""
    found = []
    for one in results.get("decomposition") or ():
        gap = one.get("gap")
        if gap:
            split = gap["splits"][-1]
            parts = f"{interval(split['reward'])} from the reward, {interval(split['optimizer'])} from the optimizer"
            parts += f" and {interval(gap['relabeling'])} from relabeling" if gap.get("relabeling") else ""
            found.append(f"{gap['a']} less {gap['b']} in {_measure(one)}: {interval(gap['total'])}, of which {parts} "
                         f"({split['order']}).")  # fmt: skip
    points = level(results)
    if points:
        told = ", ".join(f"{point['reward']} {interval(point['gold_gain'])}" for point in points)
        found.append(f"A perfect optimizer at about {number(points[0]['seq_kl']['value'])} nats gains in gold: {told}.")
    ends = {(one["reward"], one["against"]): one for one in results.get("tilt_differences") or ()}  # KL rises
    if ends:
        told = "; ".join(f"{a} less {b} {interval(one['gold_gain'])} at {number(one['kl'])} nats"
                         for (a, b), one in ends.items())  # fmt: skip
        found.append(f"Perfect optimizers at the same KL, the largest compared, gold paired by prompt: {told}.")
    return found


def sections(results: Mapping[str, Any]) -> str:
    """`## Reward and optimizer apart` and `## Perfect optimizers`; empty where nothing was crossed or sampled."""
    return "\n\n".join(part for part in (_crossed(results), _tilts(results)) if part)


def level(results: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """The points of all rewards at the largest KL at which none is refused; empty without two rewards or gold."""
    curves: dict[str, list[Mapping[str, Any]]] = {}
    for point in results.get("tilt") or ():
        curves.setdefault(point["reward"], []).append(point)
    whole = [row for row in zip(*curves.values(), strict=False) if all(told(point) for point in row)]
    return list(whole[-1]) if len(curves) > 1 and whole and whole[-1][0].get("gold_gain") else []


def told(point: Mapping[str, Any]) -> bool:
    """Whether a point was not refused."""
    return (point.get("seq_kl") or {}).get("value") is not None


def _measure(one: Mapping[str, Any]) -> str:
    at = f" at {number(one['kl'])} nats" if one.get("kl") is not None else ""
    judge = f" by {one['judge']}" if one.get("judge") else ""
    return f"{MEASURES.get(one['measure'], one['measure'])}{judge}{at}"


def _crossed(results: Mapping[str, Any]) -> str:
    parts = []
    for one in results.get("decomposition") or ():
        parts += [f"### {escape(_measure(one)).capitalize()}", _cells(one), _gap(one), _effects(one)]
    caveats = dict.fromkeys(line for one in results.get("decomposition") or () for line in one.get("caveats") or ())
    parts.append("\n".join(f"- {escape(line)}" for line in caveats))
    if not any(parts):
        return ""
    text = "Explicit: the reward model's score. Implicit: a DPO policy's log-ratio to the SFT. Each column optimizes "
    text += "it in another way; DPO does on the same pairs with labels drawn from that reward. Differences are paired "
    text += "by prompt and run seed. The two orders differ where reward and optimizer interact. Relabeling: DPO on "
    text += "labels drawn from its own implicit reward less DPO on the data's."
    return "\n\n".join(["## Reward and optimizer apart", text, *(part for part in parts if part)])


def _cells(one: Mapping[str, Any]) -> str:
    cells = {(cell["reward"], cell["optimizer"]): cell for cell in one["cells"]}
    names = [name for name in OPTIMIZERS if any(place[1] == name for place in cells)]

    def shown(reward: str, optimizer: str) -> str:
        cell = cells.get((reward, optimizer))
        return f"{interval(cell['value'])} ({escape(cell['arm'])})" if cell else "-"

    rows = [[f"{reward} ({escape(one[reward])})", *(shown(reward, name) for name in names)]
            for reward in ("explicit", "implicit")]  # fmt: skip
    return table(("reward", *(OPTIMIZERS[name] for name in names)), rows)


def _gap(one: Mapping[str, Any]) -> str:
    gap = one.get("gap")
    if not gap:
        return ""
    last = [interval(gap.get("relabeling")), interval(gap["total"])]
    rows = [[split["order"], interval(split["reward"]), interval(split["optimizer"]), *last] for split in gap["splits"]]
    header = (f"{escape(gap['a'])} less {escape(gap['b'])}", "reward", "optimizer", "relabeling", "sum")
    return table(header, rows)


def _effects(one: Mapping[str, Any]) -> str:
    rows = [[escape(row["effect"]), escape(row["name"]), interval(row["difference"]),
             number(row["difference"].get("minimum_detectable_effect"))] for row in one["effects"]]  # fmt: skip
    return table(("effect", "contrast", "difference", "detectable"), rows) if rows else ""


def _tilts(results: Mapping[str, Any]) -> str:
    points: Sequence[Mapping[str, Any]] = results.get("tilt") or ()
    if not points:
        return ""
    rows = [
        [escape(p["reward"]), number(p["beta"]), interval(p["seq_kl"]), interval(p.get("gold_gain")),
         interval(p["proxy_reward"]), number(p["ess"])]
        for p in points if told(p)
    ]  # fmt: skip
    refused = sum(not told(p) for p in points)
    text = "The best policy at each KL if the reward were optimized perfectly: SFT samples "
    text += f"(pools of {points[0]['pool']}) weighted by exp(reward / beta). ESS: effective sample size at the 10th "
    text += "percentile of prompts."
    text += f" {refused} points refused: too few candidates carry the weight." if refused else ""
    header = ("reward", "beta", "KL (nats)", "gain in gold", "proxy", "ESS")
    differences = [
        [f"{escape(d['reward'])} less {escape(d['against'])}", number(d["kl"]), interval(d["gold_gain"]),
         number(d["gold_gain"].get("minimum_detectable_effect"))]
        for d in results.get("tilt_differences") or ()
    ]  # fmt: skip
    parts = ["## Perfect optimizers", *([table(header, rows)] if rows else []), text]
    if differences:
        parts.append(table(("gain in gold at the same KL", "KL (nats)", "difference", "detectable"), differences))
    return "\n\n".join(parts)
