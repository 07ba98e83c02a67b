"""Reads rows from where users keep them: JSON Lines, parquet, csv, a datasets folder or the hub. Repairs nothing.

Every reader yields (row number, row) and notes what it cannot read in `Findings`; row numbers are 1-based and are
line numbers wherever the file has lines.
"""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO, Final

from workbench.data.findings import Findings
from workbench.data.sources_csv import Line, read_csv
from workbench.errors import DataError

Row = tuple[int, dict[str, Any]]
MAX_ROW_BYTES: Final = 8 * 2**20
_BOMS: Final = {
    b"\xef\xbb\xbf": "UTF-8",
    b"\xff\xfe\x00\x00": "UTF-32",
    b"\x00\x00\xfe\xff": "UTF-32",
    b"\xff\xfe": "UTF-16",
    b"\xfe\xff": "UTF-16",
}
_JSONL: Final = (".jsonl", ".ndjson", ".json")
# Names that are files' where no such path exists; a hub id may have dots of its own (`model-v1.2`).
_FILES: Final = (*_JSONL, ".parquet", ".csv", ".tsv", ".txt", ".zip", ".arrow", ".gz")


def read_rows(
    source: str | Path, findings: Findings, *, limit: int | None = None, split: str | None = None
) -> Iterator[Row]:
    """Yields the rows of a file, a datasets folder or a hub data set.

    Args:
        source: A path; or, where no such path exists, a hub id `owner/name[:folder][@revision][#split]`.
        findings: Takes what cannot be read.
        limit: Read only this many rows from the top (unreadable ones counted).
        split: Which split of a folder that has several; None: `train`, or the only one.

    Raises:
        DataError: The source does not exist, has no such split, or the hub cannot be reached.
    """
    path = Path(source)
    if path.is_dir():
        data = _load_folder(path)
        _check_single(data, split, str(source))
        yield from _limited(_read_dataset(data, findings, split), limit)
    elif path.is_file():
        yield from _read_file(path, findings, limit)
    elif is_hub_id(str(source)) and not path.name.lower().endswith(_FILES):
        yield from _limited(_read_dataset(load_hub(str(source)), findings, split), limit)
    else:
        raise DataError(f"no such file or folder: {source}; give a path that exists, or a hub id like owner/name")


def _limited(rows: Iterator[Row], limit: int | None) -> Iterator[Row]:
    for number, row in rows:
        if limit is not None and number > limit:
            return
        yield number, row


def _read_file(path: Path, findings: Findings, limit: int | None) -> Iterator[Row]:
    if path.stat().st_size == 0:
        findings.add("empty_file", None, "the file has 0 bytes")
        return
    suffix = Path(path.name.removesuffix(".gz")).suffix.lower()
    if suffix == ".parquet":
        yield from _limited(_read_parquet(path, findings), limit)
        return
    if suffix not in (*_JSONL, ".csv"):
        findings.add("unknown_type", None, f"the name ends with {path.suffix or 'no suffix'!r}")
        return
    with path.open("rb") as raw:
        zipped = raw.read(2) == b"\x1f\x8b"
        raw.seek(0)
        # By content, not by name; a GzipFile reads like any binary stream.
        stream: BinaryIO = gzip.GzipFile(fileobj=raw) if zipped else raw  # type: ignore[assignment]
        try:
            reader = _read_csv if suffix == ".csv" else _read_jsonl
            yield from reader(stream, findings, limit)
        except (EOFError, gzip.BadGzipFile, zlib.error) as error:
            findings.add("unreadable", None, f"the gzip stream is damaged: {error}")


def _lines(stream: BinaryIO, findings: Findings, limit: int | None) -> Iterator[Line]:
    """Lines with what is wrong with them; one over the cap is skipped unread, so memory stays bounded."""
    number, offset = 0, 0
    while limit is None or number < limit:
        line = stream.readline(MAX_ROW_BYTES + 1)
        if not line:
            return
        number += 1
        start, size = offset, len(line)
        if len(line) > MAX_ROW_BYTES and not line.endswith(b"\n"):
            quotes = line.count(b'"')
            while rest := stream.readline(MAX_ROW_BYTES):
                size += len(rest)
                quotes += rest.count(b'"')
                if rest.endswith(b"\n"):
                    break
            offset += size
            message = f"the row has {size:,} bytes; the cap is {MAX_ROW_BYTES:,}"
            yield Line(number, "", ("giant_row", message), quotes)
            continue
        offset += size
        if number == 1 and (bom := next((mark for mark in _BOMS if line.startswith(mark)), None)):
            findings.add("bom", 1, f"a {_BOMS[bom]} byte order mark at byte 0")
            if _BOMS[bom] != "UTF-8":
                return
            line = line[len(bom) :]
            start += len(bom)
        yield _decoded(number, line, start)


def _decoded(number: int, line: bytes, start: int) -> Line:
    """A line of the file that begins at byte `start`; a faulty one keeps its quotation marks and its end."""
    if (at := line.find(b"\0")) >= 0:
        text = line.replace(b"\0", b"?").decode("utf-8", errors="replace")
        return Line(number, text, ("nul", f"a NUL byte at byte {start + at} of the file"))
    try:
        return Line(number, line.decode("utf-8"))
    except UnicodeDecodeError as error:
        message = f"byte 0x{line[error.start]:02x} at byte {start + error.start} of the file"
        return Line(number, line.decode("utf-8", errors="replace"), ("not_utf8", message))


def _no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    keys = [key for key, _ in pairs]
    if len(set(keys)) != len(keys):
        raise _DuplicateKey(next(key for key in keys if keys.count(key) > 1))
    return dict(pairs)


class _DuplicateKey(Exception):
    pass


def _read_jsonl(stream: BinaryIO, findings: Findings, limit: int | None) -> Iterator[Row]:
    any_row = False
    for one in _lines(stream, findings, limit):
        number, line = one.number, one.text
        if one.fault is not None:
            code, message = one.fault
            findings.add(code, number, message)
            continue
        if not line.strip():
            if line.endswith("\n"):
                findings.add("malformed_json", number, "a blank line")
            continue
        if not any_row and line.lstrip().startswith("["):
            findings.add("json_array", number, "the file starts with '[': expected one JSON object per line")
            return
        any_row = True
        try:
            row = json.loads(line.rstrip("\r\n"), object_pairs_hook=_no_duplicates)
        except json.JSONDecodeError as error:
            findings.add("malformed_json", number, f"column {error.colno}: {error.msg}")
        except _DuplicateKey as error:
            findings.add("duplicate_key", number, f"the key {str(error)!r} stands twice")
        except (RecursionError, ValueError) as error:
            findings.add("malformed_json", number, f"cannot be parsed: {type(error).__name__}: {str(error)[:80]}")
        else:
            if isinstance(row, dict):
                yield number, row
            else:
                findings.add("malformed_json", number, f"column 1: expected an object, found {type(row).__name__}")


def _read_csv(stream: BinaryIO, findings: Findings, limit: int | None) -> Iterator[Row]:
    yield from read_csv(_lines(stream, findings, None), findings, limit, MAX_ROW_BYTES)


def _read_parquet(path: Path, findings: Findings) -> Iterator[Row]:
    import pyarrow
    import pyarrow.parquet

    number = 0
    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            for batch in file.iter_batches(batch_size=1024):
                for row in batch.to_pylist():
                    number += 1
                    yield number, row
    except (pyarrow.ArrowException, OSError) as error:
        findings.add("unreadable", None, f"parquet: {str(error)[:200]}")
    except UnicodeDecodeError as error:
        findings.add("unreadable", None, f"parquet: a text after row {number} is not UTF-8: {error.reason}")


def _load_folder(path: Path) -> Any:
    """A folder written by `save_to_disk`, or one of data files that `load_dataset` understands."""
    import datasets

    try:
        if (path / "dataset_dict.json").exists() or (path / "state.json").exists():
            return datasets.load_from_disk(str(path))
        return datasets.load_dataset(str(path))
    except Exception as error:
        raise DataError(
            f"cannot read this folder as a data set: {_first_line(error)}; expected what datasets' save_to_disk "
            "writes, or a folder of parquet, jsonl or csv files",
            where=str(path),
        ) from error


def is_hub_id(text: str) -> bool:
    """Whether a text that is no path may be a hub id."""
    return text.partition(":")[0].partition("@")[0].partition("#")[0].count("/") == 1 and not Path(text).is_absolute()


def load_hub(name: str) -> Any:
    """A hub data set by `owner/name[:folder][@revision][#split]`. Code of the data set's own is never run."""
    import datasets

    rest, _, split = name.partition("#")
    rest, _, revision = rest.partition("@")
    repository, _, folder = rest.partition(":")
    inside = {"data_dir": folder} if folder else {}
    try:
        return datasets.load_dataset(repository, revision=revision or None, split=split or None, **inside)
    except Exception as error:
        raise DataError(
            f"cannot load {repository!r} from the hub: {_first_line(error)}; if a file was meant, no such path "
            "exists; else check the id, the split and the network, or download it and give the path",
            where=name,
        ) from error


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error).strip().splitlines()[0][:200] if str(error).strip() else 'no detail'}"


def _check_single(data: Any, split: str | None, source: str) -> None:
    """Refuses another split than the only one that a folder holds: it would be passed over in silence.

    Raises:
        DataError: Names the split that there is, if the folder says it.
    """
    if split is None or isinstance(data, Mapping):
        return
    own = str(data.split) if data.split is not None else None
    # A hub id that was fetched with a split is kept as that split alone; slices (`train[:10%]`) lose their bounds.
    if own is None or own.partition("[")[0] != split.partition("[")[0]:
        holds = "one that has no name" if own is None else f"{own!r} alone"
        raise DataError(f"no split {split!r}; this folder holds {holds}: remove data.split", where=source)


def _read_dataset(data: Any, findings: Findings, split: str | None) -> Iterator[Row]:
    if isinstance(data, Mapping):
        names = ", ".join(map(str, data))
        if split is not None and split not in data:
            raise DataError(f"no split {split!r}; this data set has {names}: set data.split", where=findings.name)
        if split is None and "train" not in data and len(data) != 1:
            raise DataError(
                f"this data set has the splits {names} and none named 'train'; name one in data.split, or as "
                "owner/name#split",
                where=findings.name,
            )
        data = data[split or ("train" if "train" in data else next(iter(data)))]
    for number, row in enumerate(data, 1):
        yield number, dict(row)
