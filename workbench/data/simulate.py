"""Preference pairs from a policy's own samples, labeled by simulated annotators who see the gold reward."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from workbench.data.annotators import Annotator, label_pairs
from workbench.data.findings import Findings
from workbench.data.splits import pair_id
from workbench.errors import DataError, IntegrityError
from workbench.gold import Gold
from workbench.types import SPLITS, Annotation, Generation, PreferencePair, Prompt

SOURCE = "simulated"


@dataclass(frozen=True)
class Draft:
    """Two different samples of one prompt, not labeled yet."""

    prompt: Prompt
    a: Generation
    b: Generation


def count_words(text: str) -> int:
    """Number of words: pieces between whitespace that hold a letter or a digit, so lone punctuation is none."""
    return sum(piece[0].isalnum() or any(map(str.isalnum, piece)) for piece in text.split())


def rounds(count: int) -> Iterator[list[tuple[int, int]]]:
    """All pairs of `count` things in rounds; within a round nothing stands twice (the circle method)."""
    seats: list[int | None] = list(range(count))
    if count % 2:
        seats.append(None)
    for _ in range(len(seats) - 1):
        half = len(seats) // 2
        meetings = zip(seats[:half], reversed(seats[half:]), strict=True)
        yield [(a, b) for a, b in meetings if a is not None and b is not None]
        seats = [seats[0], seats[-1], *seats[1:-1]]


def form_pairs(
    prompts: Sequence[Prompt],
    generations: Sequence[Generation],
    wanted: Mapping[str, int],
    rng: np.random.Generator,
    findings: Findings,
) -> list[Draft]:
    """Pairs up samples of one prompt until every split has what it wants.

    Every prompt gives its first round of pairs (each sample once) before any gives a second one. Samples with equal
    text are no pair: they are counted and passed over.

    Args:
        prompts: Prompts of all splits.
        generations: Samples of them, all of one policy.
        wanted: Number of pairs by split.
        rng: Draws the order of prompts and samples.
        findings: Takes what was passed over, and splits that stay short.

    Raises:
        DataError: A split that wants pairs gets none.
        IntegrityError: A sample belongs to no prompt.
    """
    by_id = {prompt.prompt_id: prompt for prompt in prompts}
    samples: dict[str, list[Generation]] = {}
    for one in generations:
        if one.prompt_id not in by_id:
            raise IntegrityError(f"generation {one.generation_id!r} is of prompt {one.prompt_id!r}, which is unknown")
        samples.setdefault(one.prompt_id, []).append(one)
    drafts: list[Draft] = []
    for split in SPLITS:
        count = wanted.get(split, 0)
        if count == 0:
            continue
        ids = [prompt.prompt_id for prompt in by_id.values() if prompt.split == split and prompt.prompt_id in samples]
        order = [ids[i] for i in rng.permutation(len(ids))]
        shuffled = {one: [samples[one][i] for i in rng.permutation(len(samples[one]))] for one in order}
        formed = _form_split([by_id[one] for one in order], shuffled, count, findings)
        if not formed:
            raise DataError(
                f"the split {split!r} wants {count} pairs and got none, from {len(ids)} prompts with samples; a pair "
                "needs two samples of one prompt with different texts. Give more prompts, or sample more"
            )
        if len(formed) < count:
            findings.add("fewer_pairs", None, f"{len(formed)} of {count} pairs for {split}: no more different samples")
        drafts += formed
    return drafts


def _form_split(
    prompts: Sequence[Prompt], samples: Mapping[str, Sequence[Generation]], count: int, findings: Findings
) -> list[Draft]:
    schedules = [(prompt, samples[prompt.prompt_id], rounds(len(samples[prompt.prompt_id]))) for prompt in prompts]
    formed: list[Draft] = []
    while schedules and len(formed) < count:
        alive = []
        for prompt, mine, schedule in schedules:
            meetings = next(schedule, None)
            if meetings is None:
                continue
            alive.append((prompt, mine, schedule))
            for i, j in meetings:
                if len(formed) == count:
                    return formed
                if mine[i].response == mine[j].response:
                    findings.add("identical_samples", None, "two samples of a prompt have the same text")
                else:
                    formed.append(Draft(prompt, mine[i], mine[j]))
        schedules = alive
    return formed


def label(
    drafts: Sequence[Draft], gold: Gold, annotators: Sequence[Annotator], labels_per_pair: int, rng: np.random.Generator
) -> tuple[list[PreferencePair], dict[str, dict[str, float]], list[list[bool]]]:
    """Labels pairs by annotators; the majority (or the one label) says which response is chosen.

    Returns:
        Pairs with every annotator's label; {pair_id: {"chosen": gold, "rejected": gold}}; and of each pair, for every
        annotation, whether the chosen response was shown first.

    Raises:
        DataError: A gold score is missing or not finite.
    """
    both = [one for draft in drafts for one in (draft.a, draft.b)]
    scores = np.array(
        gold(
            [draft.prompt.prompt for draft in drafts for _ in range(2)],
            [one.response for one in both],
            [one.finish_reason == "stop" for one in both],
        )
    ).reshape(-1, 2)
    words = np.array([float(count_words(one.response)) for one in both]).reshape(-1, 2)
    labels = label_pairs(scores[:, 0], scores[:, 1], words[:, 0], words[:, 1], annotators, labels_per_pair, rng)
    pairs, golds, shown = [], {}, []
    seen: dict[str, int] = {}
    for row, draft in enumerate(drafts):
        a_chosen = bool(labels.a_chosen[row])
        chosen, rejected = (draft.a, draft.b) if a_chosen else (draft.b, draft.a)
        base = pair_id(draft.prompt.prompt, chosen.response, rejected.response)
        seen[base] = seen.get(base, -1) + 1
        pair = PreferencePair(
            pair_id=pair_id(draft.prompt.prompt, chosen.response, rejected.response, seen[base]),
            prompt_id=draft.prompt.prompt_id,
            prompt=draft.prompt.prompt,
            chosen=chosen.response,
            rejected=rejected.response,
            source=SOURCE,
            split=draft.prompt.split,
            annotations=tuple(
                Annotation(annotator=annotators[who].name, prefers_first=bool(prefers_a) == a_chosen)
                for who, prefers_a in zip(labels.annotator[row], labels.prefers_a[row], strict=True)
            ),
            chosen_finished=chosen.finish_reason == "stop",
            rejected_finished=rejected.finish_reason == "stop",
        )
        pairs.append(pair)
        chosen_gold, rejected_gold = scores[row] if a_chosen else scores[row, ::-1]
        golds[pair.pair_id] = {"chosen": float(chosen_gold), "rejected": float(rejected_gold)}
        shown.append([bool(a_first) == a_chosen for a_first in labels.a_first[row]])
    return pairs, golds, shown
