"""What every config section is built on: strict frozen models, shared field types, problems with a place."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field
from pydantic_core import PydanticCustomError

from workbench.redact import redact_text
from workbench.urls import base_url

SLUG = r"^[a-z0-9][a-z0-9._-]{0,63}$"
LABEL = r"^[a-z0-9][a-z0-9._-]{0,40}$"
BASELINE = "sft"  # label of what all arms start from and are compared with
RESERVED_LABELS = frozenset({BASELINE})

World = Literal["helpdesk"]
Schedule = Literal["linear", "cosine", "constant"]
Label = Annotated[str, Field(pattern=LABEL)]
Count = Annotated[int, Field(ge=1)]
Fraction = Annotated[float, Field(ge=0, le=1)]
Rate = Annotated[float, Field(gt=0)]
Seed = Annotated[int, Field(ge=0, lt=2**32)]
# Not in a dump where it is not given: it moves memory, and the seeds that hang on an arm's settings must not move.
Microbatch = Annotated[
    int | None,
    Field(
        ge=1,
        exclude_if=lambda value: value is None,
        description="Rows (examples, pairs, responses) of one forward and backward pass: gradients of a step's passes "
        "are accumulated, for less memory and the same result; null: a step's rows at once.",
    ),
]

Loc = tuple[str | int, ...]
Problem = tuple[Loc, str]


class Section(BaseModel):
    """A block of the config. Strict: unknown fields, quoted numbers, NaN and infinity are refused."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


def refuse(problems: Iterable[Problem]) -> None:
    """Raises one validation error that carries every problem with its place below the section.

    Args:
        problems: (location below the section that checks, what is wrong and what to do); nothing happens if empty.

    Raises:
        PydanticCustomError: Type ``problems``; its context keeps the list, so that a loader can give each a line.
    """
    found = list(problems)
    if found:
        # Spelled out in the message too, for those who build a Comparison in Python.
        text = "; ".join(f"{'.'.join(map(str, loc))}: {message}" if loc else message for loc, message in found)
        raise PydanticCustomError("problems", "{text}", {"text": text, "problems": found})


def url_problems(url: str) -> list[Problem]:
    """What is wrong with the base URL of an endpoint, in its section's field `url`."""
    if base_url(url) is None:
        return [(("url",), "expected http://HOST[:PORT]/v1 or https://…")]
    if redact_text(url) != url:
        return [(("url",), "holds a password or a key, which would be copied into reports; name api_key_env instead")]
    return []


def exactly_one(section: Section, names: tuple[str, ...]) -> str:
    """The message of a choice between fields of which one was wanted."""
    values: dict[str, Any] = {name: getattr(section, name) for name in names}
    given = [name for name, value in values.items() if value is not None and value is not False]
    got = " and ".join(given) or "none of them"
    hint = "; remove the others (or replace the whole block with --set)" if len(given) > 1 else ""
    return f"got {got}, expected exactly one of {', '.join(names)}{hint}"
