"""The stages that make data: prompts, an SFT corpus, preference pairs, and both packed for training.

Each is `fn(config, inputs, out, log)`; randomness comes from `log.seed` alone.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from workbench.data.annotators import agreement_with_gold, annotators_from_config, raw_agreement
from workbench.data.columns import LOOKED_AT
from workbench.data.findings import SHOWN, Findings
from workbench.data.label_check import check_labels
from workbench.data.layout import Layout, held_out_layout
from workbench.data.records_io import (
    CORPUS_FILE,
    FILTER_FILE,
    REPORT_FILE,
    SCORES_FILE,
    SHOWN_FILE,
    iter_pairs,
    iter_prompts,
    read_generations,
    read_prompts,
    write_json,
    write_jsonl,
    write_pairs,
    write_prompts,
)
from workbench.data.simulate import SOURCE, form_pairs, label
from workbench.data.sources import read_rows
from workbench.data.splits import check_disjoint, check_fractions, check_not_empty, refuse_shared
from workbench.data.table import PairTable, hex_id, write_tables
from workbench.data.validate import Options, load_prompts, scan_pairs, source_name
from workbench.errors import ConfigError, DataError
from workbench.types import SPLITS, PreferencePair, Prompt

if TYPE_CHECKING:
    from workbench.stage_log import StageLog

DEFAULT_SPLITS = {"validation": 0.1, "test": 0.1}


def _check_world(config: Mapping[str, Any]) -> None:
    if config.get("world") != "helpdesk":
        raise ConfigError(f"data.world is {config.get('world')!r}; expected 'helpdesk', the only embedded world")


def world_prompts(config: dict[str, Any], inputs: dict[str, Path], out: Path, log: StageLog) -> None:
    """Draws a world's prompts of all splits.

    Args:
        config: {"world": "helpdesk", "counts": {"train", "validation", "test", "ood": number of prompts}}.
        out: Receives prompts.jsonl.
    """
    from workbench.worlds.helpdesk import sample_prompts

    _check_world(config)
    prompts = sample_prompts(np.random.default_rng(log.seed), dict(config["counts"]))
    write_prompts(out, prompts)
    log.say(f"prompts: {_counts(prompts)}")


def world_model_files(config: dict[str, Any], inputs: dict[str, Path], out: Path, log: StageLog) -> None:
    """Writes a world's tokenizer.

    Args:
        config: {"world": "helpdesk"}.
        out: Receives tokenizer.json and tokenizer_config.json.
    """
    from workbench.worlds.helpdesk import build_tokenizer

    _check_world(config)
    build_tokenizer(out)


def world_sft_corpus(config: dict[str, Any], inputs: dict[str, Path], out: Path, log: StageLog) -> None:
    """Draws the corpus on train prompts, each of them about equally often. A response that is over the length that
    rollouts may have (about one in a hundred) is drawn anew, so that the SFT policy learns to end its responses.

    Args:
        config: {"world": "helpdesk" (optional), "examples": number of rows}.
        inputs: `prompts`.
        out: Receives corpus.jsonl.
    """
    from workbench.worlds.helpdesk import MAX_RESPONSE_TOKENS, parse_prompt, sample_response

    _check_world({"world": "helpdesk"} | config)
    rng = np.random.default_rng(log.seed)
    prompts = [prompt.prompt for prompt in read_prompts(inputs["prompts"]) if prompt.split == "train"]
    if not prompts:
        raise DataError("there is no train prompt to build a corpus on; ask for more prompts")
    requests = [parse_prompt(prompt) for prompt in prompts]
    order: list[int] = []
    while len(order) < config["examples"]:
        order += rng.permutation(len(prompts)).tolist()
    rows = []
    for index in order[: config["examples"]]:
        response = sample_response(requests[index], rng)
        while len(response.split()) + 1 > MAX_RESPONSE_TOKENS:
            response = sample_response(requests[index], rng)
        rows.append({"prompt": prompts[index], "response": response})
    write_jsonl(out / CORPUS_FILE, rows)


def file_prompts(config: dict[str, Any], inputs: dict[str, Path], out: Path, log: StageLog) -> None:
    """Reads and splits prompts that a user keeps in a file.

    Args:
        config: {"splits": fractions, "limit", "drop_invalid", "layout"}; any may be missing.
        inputs: `source`; `ood` and `tokenizer` (for prompts that are lists of messages) are optional.
        out: Receives prompts.jsonl and report.json.

    Raises:
        DataError: Something is wrong with the file, a split is empty, or a prompt is in two splits.
    """
    fractions = check_fractions(config.get("splits") or DEFAULT_SPLITS)
    tokenizer = _tokenizer(config, inputs)
    layout = Layout.from_config(config.get("layout"))
    options = Options(
        drop_invalid=bool(config.get("drop_invalid")), limit=config.get("limit"), fractions=fractions, seed=log.seed,
        layout=layout,
    )  # fmt: skip
    prompts, report = load_prompts(inputs["source"], options, tokenizer=tokenizer)
    check_not_empty(Counter(prompt.split for prompt in prompts), fractions, own=report.own_splits)
    reports = report.to_json()
    if "ood" in inputs:
        held = Options(drop_invalid=options.drop_invalid, split="ood", layout=layout)
        ood, ood_report = load_prompts(inputs["ood"], held, tokenizer=tokenizer)
        prompts += ood
        reports["ood"] = ood_report.to_json()
    check_disjoint((prompt.prompt, prompt.split) for prompt in prompts)
    prompts.sort(key=lambda prompt: prompt.prompt_id)  # which come first must not hang on the order of rows
    write_prompts(out, prompts)
    write_json(out / REPORT_FILE, reports)
    log.say(f"prompts: {_counts(prompts)}")


def file_pairs(config: dict[str, Any], inputs: dict[str, Path], out: Path, log: StageLog) -> None:
    """Reads, validates and splits preference pairs that a user keeps in a file, a datasets folder or on the hub.

    Args:
        config: {"preferences": hub id, if there is no `source`; "splits", "limit", "drop_invalid", "deduplicate",
            "max_identical_fraction", "trust_remote_code", "layout": see `layout.Layout`, "labels": {"rule", "weights",
            "margins"}, what the training pairs must give}; any may be missing.
        inputs: `source`; `ood` (pairs, or prompts alone) and `tokenizer` (for conversations) are optional.
        out: Receives pairs.jsonl, prompts.jsonl (every prompt once) and report.json.

    Raises:
        DataError: Something is wrong with the file, a split is empty, a prompt is in two splits, or `labels` asks for
            what the pairs do not have.
    """
    fractions = check_fractions(config.get("splits") or DEFAULT_SPLITS)
    source: str | Path = inputs["source"] if "source" in inputs else str(config.get("preferences"))
    tokenizer = _tokenizer(config, inputs)
    common: dict[str, Any] = {name: bool(config.get(name)) for name in ("drop_invalid", "deduplicate")}
    common["layout"] = Layout.from_config(config.get("layout"))
    if config.get("max_identical_fraction") is not None:
        common["max_identical_fraction"] = float(config["max_identical_fraction"])
    options = Options(**common, limit=config.get("limit"), fractions=fractions, seed=log.seed)
    table, report = scan_pairs(source, options, tokenizer=tokenizer, scratch=out)
    first = table.first_of_prompts()
    prompts_of = Counter(SPLITS[at] for at in table.splits[first].tolist())
    check_not_empty(prompts_of, fractions, own=report.own_splits)
    if config.get("labels"):
        check_labels(_train_labels(table), config["labels"])
    reports = report.to_json()
    tables: list[PairTable] = [table]
    prompts: list[Prompt] = []
    if "ood" in inputs:
        held = Options(**common, split="ood")
        more, prompts, reports["ood"] = _ood(inputs["ood"], held, tokenizer, out)
        tables += more
    _check_apart(table, tables[1:], prompts)
    counts = write_tables(out, tables, prompts)
    write_json(out / REPORT_FILE, reports)
    kept = ", ".join(f"{count} {split}" for split, count in counts.items()) or "none"
    made = "" if report.pairing is None else f" of {report.rows} rows"
    dropped = made or f"; {report.rows - report.kept} of {report.rows} dropped"
    log.say(f"pairs: {kept} from {source_name(source)}{dropped}")


def _train_labels(table: PairTable) -> Iterator[dict[str, Any]]:
    """{"pair_id", "annotations", "target_margin"} of each training pair."""
    for at in np.flatnonzero(table.splits == SPLITS.index("train")).tolist():
        yield {"pair_id": hex_id(table.pair_ids[at])} | json.loads(b"{" + table.parts(at).tail + b"}")


def _ood(
    source: Path, options: Options, tokenizer: Any, scratch: Path
) -> tuple[list[PairTable], list[Prompt], dict[str, Any]]:
    """Out-of-distribution rows: pairs if the first rows have responses, else prompts alone."""
    rows = [row for _, row in read_rows(source, Findings(source_name(source)), limit=LOOKED_AT)]
    layout = held_out_layout(rows, options.layout)
    if layout is None:
        alone = replace(options, layout=Layout(columns=options.layout.columns))
        prompts, report = load_prompts(source, alone, tokenizer=tokenizer)
        return [], prompts, report.to_json()
    table, report = scan_pairs(source, replace(options, layout=layout), tokenizer=tokenizer, scratch=scratch)
    return [table], [], report.to_json()


def _check_apart(table: PairTable, others: Sequence[PairTable], prompts: Sequence[Prompt]) -> None:
    """Refuses an out-of-distribution prompt that stands among the other pairs.

    Raises:
        DataError: Names the first ten.
    """
    held = {int(prompt.prompt_id, 16) for prompt in prompts}
    held |= {one for other in others for one in other.prompt_ids.tolist()}
    first = table.first_of_prompts()
    shared = [at for at in first.tolist() if int(table.prompt_ids[at]) in held]
    examples = [(table.parts(at).prompt, {table.split(at), "ood"}) for at in shared[:SHOWN]]
    refuse_shared(examples, len(shared), len(first) + len(held) - len(shared))


def simulate_pairs(config: dict[str, Any], inputs: dict[str, Path], out: Path, log: StageLog) -> None:
    """Forms pairs of a policy's samples and has them labeled by simulated annotators.

    Args:
        config: {"pairs", "validation_pairs", "test_pairs", "ood_pairs" (default 0): pairs by split, "annotators",
            "labels_per_pair", "gold": as `gold.load_gold` takes it}.
        inputs: `generations` (samples on prompts of the splits), `prompts`.
        out: Receives pairs.jsonl, scores.json ({pair_id: {"chosen", "rejected"}} in gold), shown.json (of each pair in
            order, for every annotation, whether the chosen response was shown first) and report.json.

    Raises:
        DataError: A split that wants pairs gets none, or the gold reward fails.
    """
    from workbench.gold import stage_gold

    gold = stage_gold(config, inputs)
    assert gold is not None, "the config demands a gold for simulated pairs"
    annotators = annotators_from_config(config.get("annotators"))
    names = {"train": "pairs", "validation": "validation_pairs", "test": "test_pairs", "ood": "ood_pairs"}
    wanted = {split: int(config.get(name) or 0) for split, name in names.items()}
    generations = read_generations(inputs["generations"])
    findings = Findings(SOURCE)
    rng = np.random.default_rng(log.seed)
    drafts = form_pairs(read_prompts(inputs["prompts"]), generations, wanted, rng, findings)
    pairs, golds, shown = label(drafts, gold, annotators, int(config.get("labels_per_pair") or 1), rng)
    write_pairs(out, pairs)
    write_json(out / SCORES_FILE, golds)
    (out / SHOWN_FILE).write_text(json.dumps(shown) + "\n", encoding="utf-8")
    identical = findings.count("identical_samples")
    report = {
        "rows": len(pairs) + identical,
        "kept": len(pairs),
        "findings": [finding.to_json() for finding in findings.all()],
        "raw_agreement": raw_agreement(pairs),
        "agreement_with_gold": agreement_with_gold(pairs, golds),
    }
    write_json(out / REPORT_FILE, report)
    log.cost(reward_queries=2 * len(pairs))
    log.say(f"pairs: {_counts(pairs)}; {identical} pairs of equal samples passed over")


def pack_prompts(config: dict[str, Any], inputs: dict[str, Path], out: Path, log: StageLog) -> None:
    """Tokenises prompts and leaves out those that are too long, for every arm alike.

    Args:
        config: {"max_prompt_tokens", "max_length", "max_response_tokens", "stop_token_ids", "trust_remote_code"}.
        inputs: `prompts`, `tokenizer` (folder).
        out: Receives packed prompts and filter.json.
    """
    from workbench.data.packing import pack_prompts as pack

    facts = pack(iter_prompts(inputs["prompts"]), inputs["tokenizer"], config, out)
    write_json(out / FILTER_FILE, facts)
    log.say(f"prompts: kept {facts['kept']} of {facts['rows']}{_reasons(facts)}")


def pack_pairs(config: dict[str, Any], inputs: dict[str, Path], out: Path, log: StageLog) -> None:
    """Tokenises pairs and leaves out those that some arm could not use whole, for every arm alike.

    Args:
        config: As `pack_prompts`.
        inputs: `pairs`, `tokenizer` (folder).
        out: Receives packed pairs and filter.json.
    """
    from workbench.data.packing import pack_pairs as pack

    facts = pack(iter_pairs(inputs["pairs"]), inputs["tokenizer"], config, out)
    write_json(out / FILTER_FILE, facts)
    log.say(f"pairs: kept {facts['kept']} of {facts['rows']}{_reasons(facts)}")


class _LazyTokenizer:
    """Loads only when a conversation has to be rendered: plain texts need no transformers."""

    def __init__(self, folder: Path, trust_remote_code: bool) -> None:
        self._folder = folder
        self._trust = trust_remote_code

    @cached_property
    def _loaded(self) -> Any:
        from workbench.tokens import load_tokenizer

        return load_tokenizer(self._folder, trust_remote_code=self._trust)

    @property
    def chat_template(self) -> Any:
        return self._loaded.chat_template

    def apply_chat_template(self, *args: Any, **kwargs: Any) -> Any:
        return self._loaded.apply_chat_template(*args, **kwargs)


def _tokenizer(config: Mapping[str, Any], inputs: Mapping[str, Path]) -> _LazyTokenizer | None:
    if "tokenizer" not in inputs:
        return None
    return _LazyTokenizer(inputs["tokenizer"], bool(config.get("trust_remote_code")))


def _counts(rows: Sequence[Prompt] | Sequence[PreferencePair]) -> str:
    counts = Counter(row.split for row in rows)
    return ", ".join(f"{count} {split}" for split, count in counts.items()) or "none"


def _reasons(facts: Mapping[str, Any]) -> str:
    return "".join(f"; {count} {reason}" for reason, count in facts["dropped"].items())
