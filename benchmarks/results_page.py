"""Writes docs/results-json.md, every field of results.json, from the models that write and read the file.

python -m benchmarks.results_page [--out docs/results-json.md]
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from workbench.results import emit_json_schema

PAGE = Path(__file__).parents[1] / "docs" / "results-json.md"
HEAD = """# results.json, field by field

What `workbench compare` writes to `HOME/results/NAME/results.json`, prints with `--json`, and what the report, MLflow
and `workbench report A B` are made from. Numbers are finite or null. Schema 1: a field may be added, none changes its
meaning. `workbench report --schema` prints the same as a JSON schema. How the numbers are made:
[statistics.md](statistics.md); their names in MLflow: [metrics.md](metrics.md).

This page is written by `python -m benchmarks.results_page` from the code.
"""


def page(schema: Mapping[str, Any]) -> str:
    """The page's text."""
    parts = [HEAD, *_section("The file", schema, schema.get("description", ""))]
    for name in _in_order(schema):
        own = schema["$defs"][name]
        parts += _section(name, own, own.get("description", ""))
    return "\n".join(parts).rstrip() + "\n"


def _section(title: str, part: Mapping[str, Any], about: str) -> Iterator[str]:
    yield f"## {title}\n"
    if about:
        yield " ".join(about.split()) + "\n"
    yield "| field | kind | what it holds |"
    yield "|---|---|---|"
    for name, field in part.get("properties", {}).items():
        yield f"| `{name}` | {_kind(field)} | {_cell(field.get('description', ''))} |"
    yield ""


def _kind(field: Mapping[str, Any]) -> str:
    if "$ref" in field:
        name = field["$ref"].rpartition("/")[2]
        return f"[{name}](#{name.lower()})"
    if "anyOf" in field:
        return " or ".join(dict.fromkeys(map(_kind, field["anyOf"])))
    if "const" in field:
        return f"`{field['const']}`"
    if "enum" in field:
        return ", ".join(f"`{one}`" for one in field["enum"])
    if "prefixItems" in field:
        return f"list of {len(field['prefixItems'])}: " + ", ".join(map(_kind, field["prefixItems"]))
    if field.get("type") == "array":
        return f"list of {_kind(field.get('items', {}))}"
    if field.get("type") == "object":
        return f"map of names to {_kind(field.get('additionalProperties') or {})}"
    return {"number": "number", "integer": "integer", "string": "text", "boolean": "true or false", "null": "null"}.get(
        field.get("type", ""), "anything"
    )


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


def _in_order(schema: Mapping[str, Any]) -> list[str]:
    """The parts in the order in which the file leads to them."""
    found: list[str] = []

    def follow(part: Mapping[str, Any]) -> None:
        for name in re.findall(r"'#/\$defs/(\w+)'", str(part.get("properties", {}))):
            if name not in found:
                found.append(name)
                follow(schema["$defs"][name])

    follow(schema)
    return found


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=PAGE)
    parser.parse_args().out.write_text(page(emit_json_schema()), encoding="utf-8")


if __name__ == "__main__":
    main()
