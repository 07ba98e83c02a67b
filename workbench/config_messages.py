"""Pydantic's errors in the bench's words: got, expected, did you mean; each with its place in the file."""

from __future__ import annotations

import difflib
import re
import typing
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from pydantic import ValidationError

from workbench.config_arms import ARM_KINDS
from workbench.config_base import LABEL, SLUG, Loc, Section
from workbench.config_comparison import Comparison
from workbench.config_judges import JUDGE_KINDS
from workbench.config_yaml import Fault, Node, show, show_name

LABELED: tuple[Loc, ...] = (("arms",), ("reward_models",), ("judges",))  # mappings whose keys the user names
TAGGED: dict[str | int, Mapping[str, type[Section]]] = {
    "arms": ARM_KINDS,
    "judges": JUDGE_KINDS,
}  # blocks with a `kind`

_TYPES = {
    "int_type": "a whole number",
    "int_from_float": "a whole number",
    "float_type": "a number",
    "string_type": "text",
    "bool_type": "true or false",
    "list_type": "a list",
    "dict_type": "a mapping",
    "model_type": "a mapping",
    "model_attributes_type": "a mapping",
    "finite_number": "a finite number",
}
_BOUNDS = {
    "greater_than": ("gt", "more than"),
    "greater_than_equal": ("ge", "at least"),
    "less_than": ("lt", "less than"),
    "less_than_equal": ("le", "at most"),
}
_SLUG_WORDS = "lower-case letters, digits, '.', '_' and '-', a letter or digit first, at most {} characters"
_PATTERNS = {SLUG: _SLUG_WORDS.format(64), LABEL: _SLUG_WORDS.format(41)}


def faults_of(error: ValidationError, tree: Node) -> Iterator[Fault]:
    """Every problem that validation found, with its place in the tree."""
    for entry in error.errors(include_url=False):
        loc = entry["loc"]
        kind = entry["type"]
        if kind == "default_factory_not_called":  # follows from another field's problem
            continue
        on_key = bool(loc) and loc[-1] == "[key]"
        path = _without_tags(loc)
        if kind == "problems":
            for below, message in entry["ctx"]["problems"]:
                yield _fault(tree, (*path, *below), message)
        elif kind == "union_tag_invalid":
            kinds = TAGGED[path[0]]
            got = entry["input"]["kind"] if isinstance(entry["input"], dict) else entry["input"]
            message = f"got {show(got)}, expected one of {', '.join(kinds)}{did_you_mean(str(got), kinds)}"
            yield _fault(tree, (*path, "kind"), message)
        elif kind == "union_tag_not_found":
            kinds = TAGGED[path[0]]
            expected = f"expected `kind: ` and one of {', '.join(kinds)}"
            expected += " (kind defaults to the label where it is one)" if path[0] == "arms" else ""
            yield _fault(tree, path, f"no kind, {expected}{did_you_mean(str(path[-1]), kinds)}", on_key=True)
        else:
            yield _fault(tree, path, _message(entry, loc), on_key=on_key or kind in {"extra_forbidden", "missing"})


def in_words(entry: Any) -> str:
    """One entry of a ValidationError of a section, as the config's faults are worded."""
    return _message(entry, entry["loc"])


def _message(entry: Any, loc: Loc) -> str:
    """One plain error in words."""
    kind, value, context = entry["type"], entry["input"], entry.get("ctx", {})
    if kind == "extra_forbidden":
        return unknown_field(str(loc[-1]), loc[:-1])
    if kind == "missing":
        text = description_of(loc) or "a value"
        return f"missing, expected {text[0].lower()}{text[1:].rstrip('.')}"
    if kind in _TYPES:
        return f"got {show(value)}, expected {_TYPES[kind]}{_type_hint(kind, value)}"
    if kind in _BOUNDS:
        name, words = _BOUNDS[kind]
        return f"got {show(value)}, expected {words} {context[name]:g}"
    if kind == "literal_error":
        choices = re.findall(r"'([^']*)'", context["expected"])
        return f"got {show(value)}, expected {context['expected']}{did_you_mean(str(value), choices)}"
    if kind == "string_pattern_mismatch":
        words = _PATTERNS.get(context["pattern"], "'module:function', as in 'scorers.sentiment:score'")
        return f"got {show(value)}, expected {words}"
    if kind in {"too_short", "string_too_short"}:
        return f"got {show(value)}, expected at least {context['min_length']}"
    return f"got {show(value)}: {entry['msg']}"


def _type_hint(kind: str, value: Any) -> str:
    if kind in {"int_type", "float_type"} and isinstance(value, str):
        if re.fullmatch(r"[-+]?[0-9.]+([eE][-+]?[0-9]+)?", value):
            return "; remove the quotes"
        if re.fullmatch(r"[-+]?[0-9][0-9_,]*", value):
            return "; write the digits alone"
    if kind == "string_type" and isinstance(value, int | float) and not isinstance(value, bool):
        return "; put it in quotes"
    if kind == "bool_type" and isinstance(value, str) and value.lower() in {"yes", "no", "on", "off"}:
        return f", did you mean '{str(value.lower() in {'yes', 'on'}).lower()}'?"
    return ""


def unknown_field(name: str, loc: Loc) -> str:
    """Message for a field that a section does not have: a close name, its true section, or all that there are."""
    valid = fields_at(loc)
    guess = did_you_mean(name, valid)
    if guess:
        return f"unknown field{guess}"
    homes = [other for other in Comparison.model_fields if name in fields_at((other,))]
    homes += ["the top level"] if name in Comparison.model_fields else []
    belongs = f" ({name} belongs to {', '.join(homes)})" if homes else ""
    return f"unknown field, expected one of {', '.join(valid)}{belongs}"


def did_you_mean(name: str, candidates: Iterable[str]) -> str:
    """``, did you mean 'x'?`` for the closest candidate, else nothing."""
    close = difflib.get_close_matches(name.lower(), list(candidates), 1, 0.6)
    return f", did you mean '{close[0]}'?" if close and close[0] != name else ""


def fields_at(loc: Loc) -> list[str]:
    """Names of the fields that a place in the config can have, in order; empty where it is not a section.

    Args:
        loc: Pydantic's location. An arm may be followed by its kind; without it all kinds' fields count.
    """
    names = [name for section in _sections_at(loc) for name in section.model_fields]
    return list(dict.fromkeys(names))


def _sections_at(loc: Loc) -> list[type[Section]]:
    found: list[Any] = [Comparison]
    for position, step in enumerate(loc):
        if position == 2 and step in TAGGED.get(loc[0], ()):
            found = [TAGGED[loc[0]][str(step)]]
            continue
        found = [part for kind in found for part in _below(kind, step)]
    return [kind for kind in found if isinstance(kind, type) and issubclass(kind, Section)]


def _below(kind: Any, step: str | int) -> list[Any]:
    """The types that one step below a type can have."""
    if isinstance(kind, type) and issubclass(kind, Section):
        info = kind.model_fields.get(str(step))
        return _flat(info.annotation) if info else []
    if typing.get_origin(kind) in (dict, list):
        return _flat(typing.get_args(kind)[-1])
    return []


def _flat(annotation: Any) -> list[Any]:
    """A union or annotated type taken apart."""
    origin = typing.get_origin(annotation)
    if origin is typing.Annotated:
        return _flat(typing.get_args(annotation)[0])
    if origin is None or origin in (dict, list, typing.Literal):
        return [annotation]
    return [part for argument in typing.get_args(annotation) for part in _flat(argument)]


def description_of(loc: Loc) -> str:
    """A field's description, empty where there is none."""
    sections = _sections_at(loc[:-1])
    if loc[0] == "arms" and len(loc) == 3 and loc[1] in ARM_KINDS:  # the label tells the kind
        sections = [ARM_KINDS[str(loc[1])]]
    infos = (section.model_fields.get(str(loc[-1])) for section in sections)
    return next((info.description for info in infos if info and info.description), "")


def _without_tags(loc: Loc) -> Loc:
    """The location as the file has it: pydantic adds a block's kind and marks keys."""
    steps = loc[:-1] if loc and loc[-1] == "[key]" else loc
    return (*steps[:2], *steps[3:]) if len(steps) > 2 and steps[0] in TAGGED else steps


def _fault(tree: Node, loc: Loc, message: str, *, on_key: bool = False) -> Fault:
    node, exact = tree.find(loc)
    # A block's own problem stands at its name; so does a field that the file leaves out.
    at_key = on_key or not exact or isinstance(node.value, dict)
    return Fault(node.key if at_key else node.mark, ".".join(show_name(str(step)) for step in loc), message)
