"""A judge of your own, where nobody knows the truth: anything that answers like an OpenAI-compatible chat endpoint.

    python examples/own_judge.py [FOLDER]         # the comparison of own_data.py again, decided by the judge below

The judge is the function `verdict`: here a rule, in your case a model, a service, a panel. The workbench asks it about
every pair in both orders, without saying which arm wrote what, and runs controls beside it that know nothing.
"""

from __future__ import annotations

import json
import re
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from own_data import ITEMS, prepare, workbench

JUDGES = """
judges:
  manager:
    kind: llm
    url: {url}
    model: manager-1                 # change it when the judge changes: verdicts are kept by it
    api_key_env: null
    criterion: Which answer would keep this customer of a tea shop?
    null_model_pairs: 8
"""


def verdict(prompt: str, a: str, b: str) -> tuple[str, str]:
    """The better answer, "A", "B" or "tie", and why."""

    def merit(answer: str) -> int:
        names_it = any(item in prompt and item in answer for item in ITEMS)
        return 2 * names_it * ("refund" in answer or "send" in answer) + ("sorry" in answer)

    difference = merit(a) - merit(b)
    if difference == 0:
        return "tie", "Both would do as much."
    return ("A" if difference > 0 else "B"), "It names the thing and makes good for it."


def fenced(message: str, name: str) -> str:
    """The text between the fences PROMPT, RESPONSE A or RESPONSE B of a request (docs/judges.md)."""
    found = re.search(rf"<<<{name} (\w+)>>>\n(.*?)\n<<<END {name} \1>>>", message, re.S)
    return found[2] if found else ""


class Endpoint(BaseHTTPRequestHandler):
    """POST /v1/chat/completions."""

    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        """One pair in one order."""
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        texts = (fenced(asked["messages"][-1]["content"], name) for name in ("PROMPT", "RESPONSE A", "RESPONSE B"))
        better, reason = verdict(*texts)
        message = {"role": "assistant", "content": json.dumps({"reason": reason, "better": better})}
        choices = [{"index": 0, "message": message, "finish_reason": "stop"}]
        body = json.dumps({"object": "chat.completion", "model": asked["model"], "choices": choices}).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        """Silence: a line per request would bury the tables."""


@contextmanager
def serving() -> Iterator[str]:
    """The endpoint on a free port of this machine."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), Endpoint)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}/v1"
    finally:
        server.shutdown()


def main(folder: Path, *options: str) -> None:
    """The same arms, another judge: what own_data.py trained is reused."""
    shop = prepare(folder).read_text(encoding="utf-8")
    with serving() as url:
        config = folder / "judged.yaml"
        settings = shop.replace("name: teashop", "name: judged").replace("judges: [gold]", "judges: [manager, gold]")
        config.write_text(settings + JUDGES.format(url=url), encoding="utf-8")
        workbench("compare", config, "--home", folder / "home", *options)
    judgments = folder / "home" / "results" / "judged" / "judgments.jsonl"
    workbench("winrate", judgments)
    print(f"\nEvery verdict: {judgments}")


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "teashop-example").resolve(), *sys.argv[2:])
