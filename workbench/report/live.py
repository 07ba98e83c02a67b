"""Live progress of a comparison on stderr: bars on a terminal, one line per event otherwise, nothing when quiet."""

from __future__ import annotations

from types import TracebackType
from typing import Any, Protocol

from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, Task, TaskID, TextColumn, TimeElapsedColumn
from rich.text import Text

from workbench.report.sparkline import Trend
from workbench.report.terminal import make_console
from workbench.report.wording import clean, seconds

MAX_BARS = 8


class Event(Protocol):
    """What the executor reports (workbench.outcome.Event). Fields that a kind does not use may be missing.

    `kind`: planned, waiting, started, progress, message, metrics, finished, failed, skipped, interrupted;
    others are ignored.
    Further: done, total, note, message, cached, why, wall_s or cost.wall_s; metrics: path of the metrics.jsonl.
    """

    @property
    def kind(self) -> str: ...

    @property
    def instance(self) -> str: ...


class _TimeLeft(ProgressColumn):
    """Time left from the pace so far; empty until there is a pace."""

    def render(self, task: Task) -> Text:
        left = task.time_remaining
        return Text("" if left is None or task.finished else f"{seconds(left)} left", style="cyan")


class LiveView:
    """Shows executor events as they come. Use it as a context manager and call it with each event.

    Args:
        quiet: Show nothing at all.
        console: Where to; default: stderr.
    """

    def __init__(self, *, quiet: bool = False, console: Console | None = None) -> None:
        self._console = console or make_console()
        self._quiet = quiet
        self._bars: Progress | None = None
        self._tasks: dict[str, TaskID] = {}
        self._trends: dict[str, Trend] = {}
        self._overall: TaskID | None = None
        self._planned = self._reused = self._ended = 0
        if self._console.is_terminal and not quiet:
            self._bars = Progress(
                TextColumn("{task.description}", markup=False),  # "ppo[ppo,seed=0]" is no markup
                BarColumn(bar_width=16),
                TextColumn("{task.fields[amount]}", markup=False),
                TimeElapsedColumn(),
                _TimeLeft(),
                TextColumn("{task.fields[trend]}", style="green", markup=False),
                TextColumn("{task.fields[note]}", style="dim", markup=False),
                console=self._console,
                transient=True,
                refresh_per_second=4,
            )

    def __enter__(self) -> LiveView:
        if self._bars is not None:
            self._bars.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bars is not None:
            self._bars.stop()

    def __call__(self, event: Event) -> None:
        """Takes one event; unknown kinds are ignored."""
        if self._quiet:
            return
        instance = clean(getattr(event, "instance", "") or "")
        match event.kind:
            case "planned":
                self._planned += 1
                self._reused += bool(getattr(event, "cached", False))
                self._update_overall()
            case "started":
                self._started(instance)
            case "progress":
                self._progress(instance, event)
            case "metrics":
                self._metrics(instance, event)
            case "message":
                said = _field(event, "message") or _field(event, "note")
                self._line(f"{instance}: {said}" if instance else said)
            case "waiting":
                self._line(f"{instance}: waiting: {_field(event, 'why')}")
            case "finished" | "failed" | "skipped" | "interrupted":
                self._over(instance, event)

    def say(self, line: str) -> None:
        """A line for people that belongs to no stage, such as a tracking warning."""
        if not self._quiet:
            self._line(clean(line))

    def _started(self, instance: str) -> None:
        if self._bars is None:
            self._line(f"{instance}: started")
        elif instance not in self._tasks and len(self._tasks) < MAX_BARS:
            self._tasks[instance] = self._bars.add_task(instance, total=None, amount="", trend="", note="")

    def _progress(self, instance: str, event: Event) -> None:
        if self._bars is None:
            return  # lines are for what starts and ends
        self._started(instance)
        task = self._tasks.get(instance)
        done, total = getattr(event, "done", None), getattr(event, "total", None)
        if task is not None and done is not None:
            amount = f"{done:,}/{total:,}" if total else f"{done:,}"
            self._bars.update(task, completed=done, total=total or None, amount=amount, note=_field(event, "note")[:40])

    def _metrics(self, instance: str, event: Event) -> None:
        path, task = getattr(event, "path", None), self._tasks.get(instance)
        if self._bars is not None and task is not None and path is not None:
            trend = self._trends.setdefault(instance, Trend())
            self._bars.update(task, trend=trend.update(path))

    def _over(self, instance: str, event: Event) -> None:
        if getattr(event, "cached", False):
            if self._planned == 0:
                self._reused += 1
            if self._bars is None:
                self._line(f"{instance}: reused")
            return
        self._ended += 1
        if self._bars is not None and instance in self._tasks:
            self._bars.remove_task(self._tasks.pop(instance))
            self._trends.pop(instance, None)
        cost = getattr(event, "cost", None)
        wall_s = getattr(event, "wall_s", getattr(cost, "wall_s", None))
        why = _field(event, "message") or _field(event, "why") or _field(event, "note")
        took = f" in {seconds(wall_s)}" if wall_s is not None else ""
        reason = f": {why}" if why and event.kind != "finished" else ""
        self._line(f"{instance}: {event.kind}{took}{reason}", style="bold red" if event.kind == "failed" else "")
        self._update_overall()

    def _update_overall(self) -> None:
        to_run = self._planned - self._reused
        if self._bars is None or to_run <= 0:
            return
        amount = f"{min(self._ended, to_run)}/{to_run}" + (f" (+{self._reused} reused)" if self._reused else "")
        if self._overall is None:
            self._overall = self._bars.add_task("all stages", total=to_run, amount=amount, trend="", note="")
        self._bars.update(self._overall, completed=min(self._ended, to_run), total=to_run, amount=amount)

    def _line(self, text: str, style: str = "") -> None:
        self._console.print(Text(text, style=style), soft_wrap=True)


def _field(event: Any, name: str) -> str:
    return clean(getattr(event, name, "") or "")
