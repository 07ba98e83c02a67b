"""What validation found: all of it at once, each with its rows, what was found and what to do."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Literal

from workbench.errors import DataError

Severity = Literal["error", "warning", "info"]
Scope = Literal["row", "file", "note", "fact"]
SEVERITIES: Final[tuple[Severity, ...]] = ("error", "warning", "info")
SHOWN: Final = 10


@dataclass(frozen=True)
class Code:
    """One kind of finding. Scope "row": an error that `drop_invalid` turns into a dropped row; "file": always an
    error; "note": a warning; "fact": neither, worth knowing. `option` of `workbench data check` bears on it."""

    scope: Scope
    fix: str
    option: str = ""


_INVALID = " Or drop such rows, counted and listed, with drop_invalid."
CODES: Final[Mapping[str, Code]] = {
    "unreadable": Code("file", "Write the file anew: it is truncated, or not of the type that its name says."),
    "unknown_type": Code(
        "file", "Use .jsonl, .json or .ndjson (or .gz of it), .parquet, .csv, a datasets folder or a hub id."
    ),
    "empty_file": Code("file", "Give a file with at least one row."),
    "bom": Code("file", "Save the file as UTF-8 without a byte order mark."),
    "json_array": Code("file", "Write one JSON object per line (JSON Lines), not one array."),
    "mixed_formats": Code("file", "Give every row the same format, or split the file in two."),
    "no_chat_template": Code(
        "file", "Give a model whose tokenizer has a chat template, or render the texts yourself.", "--model"
    ),
    "mixed_splits": Code("file", "Give every row a 'split', or none of them.", "--splits"),
    "too_many_identical": Code(
        "file", "Find out why the two responses are equal, or raise max_identical_fraction.", "--max-identical"
    ),
    "malformed_json": Code("row", "Write one valid JSON object per line." + _INVALID),
    "duplicate_key": Code("row", "Keep one value per key; which one is meant cannot be known." + _INVALID),
    "malformed_csv": Code("row", "Give every row as many cells as the header, quoted where needed." + _INVALID),
    "not_utf8": Code("row", "Convert the file to UTF-8; the encoding is never guessed." + _INVALID),
    "nul": Code("row", "Remove the NUL characters." + _INVALID),
    "bad_unicode": Code("row", "Replace the lone surrogate: it cannot be written as UTF-8." + _INVALID),
    "giant_row": Code("row", "Rows are capped before they are parsed: shorten the row." + _INVALID),
    "missing_column": Code("row", "Rename or add the column." + _INVALID),
    "wrong_type": Code("row", "Give text (or lists of {role, content} for conversations)." + _INVALID),
    "empty_text": Code("row", "Give every row a prompt and two responses that are not blank." + _INVALID),
    "no_common_prompt": Code("row", "Give the prompt in a 'prompt' column, or start both texts with it." + _INVALID),
    "guessed_prompt": Code("note", "Give a 'prompt' column: two responses may well begin alike."),
    "bad_conversation": Code("row", "Responses start with an assistant message; prompts end before one." + _INVALID),
    "template_broken": Code("row", "Fix the chat template: the prompt has to be a prefix of the whole." + _INVALID),
    "bad_annotations": Code("row", "Give a list of {annotator: text, prefers_first: true|false}." + _INVALID),
    "bad_margin": Code("row", "Give target_margin as a finite number, or leave it out." + _INVALID),
    "negative_margin": Code(
        "note", "Kept: such a pair may prefer the rejected response. Check its sign, or remove it."
    ),
    "bad_split": Code("row", "Use 'train', 'validation', 'test' or 'ood'." + _INVALID),
    "identical_pair": Code("note", "Dropped: equal responses carry no preference.", "--max-identical"),
    "near_duplicate": Code("note", "Kept; drop one of each, or raise the threshold.", "--near-duplicates"),
    "split_leak": Code("file", "Keep each prompt in one split, or give no splits and split by prompt.", "--splits"),
    "near_leak": Code("note", "Move both rows to one split, or drop the held-out one.", "--near-duplicates"),
    "continued_leak": Code("note", "Split by conversation: give a 'split' that all its turns share.", "--splits"),
    "empty_split": Code("file", "Give more prompts, or larger fractions.", "--splits"),
    "few_test_prompts": Code("note", "Give more test prompts, or read win rates with this interval.", "--precision"),
    "precision": Code("fact", "Nothing to do.", "--precision"),
    "length_imbalance": Code(
        "note",
        "Read win rates at equal length; add pairs whose shorter response is better, or give margins.",
        "--length-band",
    ),
    "length_balance": Code("fact", "Nothing to do.", "--length-band"),
    "position_imbalance": Code("note", "Show each pair in a random order, or in both.", "--position-band"),
    "position_balance": Code("fact", "Nothing to do.", "--position-band"),
    "pii_email": Code("note", "Replace it by a placeholder before you train or publish.", "--no-pii"),
    "pii_phone": Code("note", "Replace it by a placeholder before you train or publish.", "--no-pii"),
    "pii_card": Code("note", "Replace it by a placeholder before you train or publish.", "--no-pii"),
    "pii_iban": Code("note", "Replace it by a placeholder before you train or publish.", "--no-pii"),
    "pii_ip": Code("note", "Replace it by a placeholder before you train or publish.", "--no-pii"),
    "no_pad": Code("file", "Set pad_token in a copy of the tokenizer to a token that responses never hold.", "--model"),
    "no_eos": Code("file", "Name the ids that end a response.", "--stop-token-id"),
    "pad_is_stop": Code("file", "Give two different ids: masked padding would mask the end of responses.", "--model"),
    "over_length_prompt": Code("note", "Left out of every arm; raise the limit, or shorten.", "--max-prompt-tokens"),
    "prompt_leaves_no_room": Code(
        "note", "Left out of every arm; shorten it, or ask for shorter responses.", "--max-response-tokens"
    ),
    "over_length_pair": Code("note", "Left out of every arm; shorten it, or take a longer context.", "--max-length"),
    "empty_tokens": Code("note", "Left out of every arm: nothing is left for the model to read.", "--model"),
    "identical_tokens": Code("note", "Left out of every arm: the model cannot tell the two apart.", "--model"),
    "boundary_merged": Code(
        "note", "Responses are tokenized alone there; end prompts with a space or a line end.", "--model"
    ),
    "holds_stop_token": Code("note", "What follows it is cut; escape the token if it was meant as text.", "--model"),
    "identical_samples": Code("note", "Dropped: equal samples carry no preference."),
    "duplicate_pair": Code("note", "Kept; drop all but the first with deduplicate.", "--deduplicate"),
    "duplicate_prompt": Code("note", "All but the first are left out, because a prompt is asked once."),
    "contradiction": Code("note", "Kept: annotators disagree. Check the labels if the rate surprises you."),
    "bad_rating": Code("row", "Give ratings as numbers, or name another one in data.rating." + _INVALID),
    "rating_tie": Code("note", "No pair: equal ratings carry no preference."),
    "small_gap": Code("note", "No pair: lower data.min_gap to keep it."),
    "unrated_response": Code("note", "Left out of every pair."),
    "single_response": Code("note", "No pair: rate at least two responses to a prompt."),
    "label_tie": Code("note", "No pair: ask one more annotator, or leave the pair out."),
    "fewer_pairs": Code("note", "Sample more responses per prompt, or ask for fewer pairs."),
}


def option_of(code: str) -> str:
    """The option of `workbench data check` that bears on a code."""
    known = CODES[code]
    return known.option or {"row": "--drop-invalid", "file": ""}.get(known.scope, "--severity")


@dataclass(frozen=True, kw_only=True)
class Finding:
    """All findings of one kind.

    Args:
        code: A name in `CODES`.
        severity: "error" stops the data from being used; "info" asks for nothing.
        count: How many there are in all.
        rows: 1-based line numbers (row numbers where the file has no lines) of the first ten; empty: the whole file.
        message: The first one in words, and how many more there are.
        fix: What to do.
    """

    code: str
    severity: Severity
    count: int
    rows: tuple[int, ...]
    message: str
    fix: str

    def to_json(self) -> dict[str, Any]:
        """As it stands in report.json and in `data check --json`."""
        return {
            "code": self.code,
            "severity": self.severity,
            "count": self.count,
            "rows": list(self.rows),
            "message": self.message,
            "fix": self.fix,
        }


@dataclass
class _Entry:
    count: int = 0
    rows: list[int] = field(default_factory=list)
    messages: list[str] = field(default_factory=list)


class Findings:
    """Collects findings of one source.

    Args:
        name: The source as messages name it (a path or a hub id).
        drop_invalid: Rows with errors are dropped, counted and listed, instead of stopping everything.
    """

    def __init__(self, name: str, *, drop_invalid: bool = False) -> None:
        self.name = name
        self.drop_invalid = drop_invalid
        self._entries: dict[str, _Entry] = {}

    def add(self, code: str, row: int | None, message: str, *, count: int = 1) -> None:
        """Notes one finding (or `count` of them that share one message) at a 1-based row, or None: the file."""
        assert code in CODES, code
        entry = self._entries.setdefault(code, _Entry())
        entry.count += count
        text = f"{self.name}:{row}: {message}" if row is not None else f"{self.name}: {message}"
        if len(entry.messages) < SHOWN and text not in entry.messages:
            entry.messages.append(text)
            if row is not None:
                entry.rows.append(row)

    def count(self, code: str) -> int:
        """How many findings of this kind there are."""
        return self._entries[code].count if code in self._entries else 0

    def _severity(self, code: str) -> Severity:
        scope = CODES[code].scope
        if scope == "fact":
            return "info"
        return "error" if scope == "file" or (scope == "row" and not self.drop_invalid) else "warning"

    def all(self) -> list[Finding]:
        """Every finding, errors first, facts last, otherwise in the order in which they were met."""
        found = [
            Finding(
                code=code,
                severity=self._severity(code),
                count=entry.count,
                rows=tuple(entry.rows),
                message=self._summary(code, entry),
                fix=self._fix(code),
            )
            for code, entry in self._entries.items()
        ]
        return sorted(found, key=lambda finding: SEVERITIES.index(finding.severity))

    def _summary(self, code: str, entry: _Entry) -> str:
        dropped = "dropped: " if CODES[code].scope == "row" and self.drop_invalid else ""
        more = f" (and {entry.count - 1} more)" if entry.count > 1 and len(entry.rows) > 0 else ""
        return f"{dropped}{entry.messages[0]}{more}"

    def _fix(self, code: str) -> str:
        return CODES[code].fix.removesuffix(_INVALID) if self.drop_invalid else CODES[code].fix

    @property
    def ok(self) -> bool:
        """No error among them."""
        return all(self._severity(code) != "error" for code in self._entries)

    def raise_errors(self) -> None:
        """Stops if there is an error.

        Raises:
            DataError: Lists every error with file and line (the first ten of a kind and how many there are in all).
        """
        errors = [finding for finding in self.all() if finding.severity == "error"]
        if not errors:
            return
        lines = []
        for finding in errors:
            entry = self._entries[finding.code]
            lines.append(f"[{finding.code}] {finding.count} in all. {finding.fix}")
            lines += [f"  {message}" for message in entry.messages]
            if entry.rows and finding.count > len(entry.messages):
                lines.append(f"  ... and {finding.count - len(entry.messages)} more")
        kinds = "one kind" if len(errors) == 1 else f"{len(errors)} kinds"
        total = sum(finding.count for finding in errors)
        where = self.name
        first = next((finding.rows[0] for finding in errors if finding.rows), None)
        if first is not None:
            where = f"{where}:{first}"
        text = "\n".join(lines)
        raise DataError(f"{total} problem(s) of {kinds} in the data; nothing was changed:\n{text}", where=where)
