"""What counts as the base URL of an endpoint."""

from __future__ import annotations

from urllib.parse import SplitResult, urlsplit


def base_url(url: str) -> SplitResult | None:
    """The parts of http(s)://HOST[:PORT]/...; None where a url is something else."""
    try:
        parts = urlsplit(url)
        fits = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        return None
    return parts if fits else None
