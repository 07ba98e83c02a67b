"""The agreement dashboard and `describe`: simulated annotators of known habits, judges' files, pages and refusals."""

from __future__ import annotations

import gzip
import json
import re
from collections.abc import Sequence
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

from pipelines.label_agreement import LabelWatch
from workbench.annotators_records import Annotators
from workbench.cli import main
from workbench.data.annotators import Annotator, label_pairs
from workbench.data.describe import describe
from workbench.data.opinions import Opinions, opinions_of_judgments, read_opinions
from workbench.data.pairs_agreement import alpha_of_pairs
from workbench.data.validate import Options
from workbench.errors import DataError
from workbench.measure_opinions import annotators
from workbench.measure_reliability import _interval
from workbench.report import svg
from workbench.report.annotators_page import annotators_page
from workbench.report.describe_page import describe_page
from workbench.types import Judgment

ALPACA = Path(__file__).parents[3] / "shared" / "data" / "alpaca_eval"
GOOD = Annotator(name="good", temperature=0.3)
PLAIN = Annotator(name="plain", temperature=1.0)
LONG = Annotator(name="long", temperature=1.0, length_bias=1.5)
FIRST = Annotator(name="first", temperature=1.0, position_bias=1.0)
NOISY = Annotator(name="noisy", temperature=1.0, careless=0.9)
EVERYBODY = (GOOD, PLAIN, LONG, FIRST, NOISY)


def pair_rows(people: Sequence[Annotator], count: int, per_pair: int, seed: int = 0) -> list[dict[str, Any]]:
    """Pairs labeled by simulated annotators, with what each of them saw first; the majority's response is chosen."""
    rng = np.random.default_rng(seed)
    gold, words = rng.normal(size=(2, count)), rng.integers(5, 25, (2, count)).astype(float)
    labels = label_pairs(gold[0], gold[1], words[0], words[1], people, per_pair, rng)
    found = []
    for at in range(count):
        a_chosen = bool(labels.a_chosen[at])
        both = ["a " * int(words[0][at]), "b " * int(words[1][at])]
        notes = [
            {
                "annotator": people[who].name, "prefers_first": bool(prefers) == a_chosen,
                "chosen_first": bool(first) == a_chosen,
            }
            for who, prefers, first in zip(labels.annotator[at], labels.prefers_a[at], labels.a_first[at], strict=True)
        ]  # fmt: skip
        found.append(
            {"prompt": f"question {at}", "chosen": both[not a_chosen], "rejected": both[a_chosen], "annotations": notes}
        )
    return found


def write(path: Path, items: Sequence[Any]) -> Path:
    path.write_text("".join(json.dumps(item) + "\n" for item in items))
    return path


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> Annotators:
    path = write(tmp_path_factory.mktemp("opinions") / "pairs.jsonl", pair_rows(EVERYBODY, 1500, 4, seed=1))
    return annotators(read_opinions([path], Options()), ["pairs.jsonl"])


def test_the_habits_of_simulated_annotators_are_found(found: Annotators) -> None:
    rows = {row.name: row for row in found.annotators}
    assert found.retrain.keys() == {"long", "first", "noisy"}
    assert "longer response" in " ".join(found.retrain["long"])
    assert "shown first" in " ".join(found.retrain["first"])
    assert "agrees less" in " ".join(found.retrain["noisy"])
    order = sorted(rows, key=lambda name: -(rows[name].reliability.value or 0.0))
    assert order[0] == "good"
    assert order[-1] == "noisy"
    noisy = rows["noisy"].reliability
    assert noisy.low is not None
    assert noisy.low < 0.57 < (noisy.high or 0.0) + 0.03  # half of 90% coin flips, and some judgment
    plain = rows["plain"].first_shown_preferred
    assert plain.low is not None
    assert plain.low < 0.5 < (plain.high or 0.0)


def test_every_figure_has_an_interval_and_n(found: Annotators) -> None:
    assert (found.pairs, found.shared, found.prompts, found.labels) == (1500, 1500, 1500, 6000)
    figures = [found.overall.agreement, found.overall.fleiss_kappa, found.overall.alpha_nominal]
    for row in found.annotators:
        figures += [row.leave_one_out, row.gap, row.reliability, row.first_shown_preferred, row.longer_preferred]
    figures += [one for row in found.between for one in (row.agreement, row.kappa)]
    for one in figures:
        assert one.value is not None
        assert one.low is not None
        assert one.high is not None
        assert one.low <= one.value <= one.high
        assert one.n > 100
    assert len(found.between) == 10
    assert found.overall.alpha_nominal.value == pytest.approx(2 * (found.overall.agreement.value or 0) - 1, abs=2e-3)


def test_pairs_to_label_again_are_the_doubtful_ones(found: Annotators) -> None:
    chances = [one.posterior for one in found.relabel]
    assert chances == sorted(chances)
    assert max(chances) < found.relabel_below
    assert 0 < len(chances) <= found.relabel_total
    assert all(one.row is not None and len(one.votes) == 4 for one in found.relabel)
    worst = found.relabel[0]
    assert worst.why == "more reliable labels say the opposite"
    assert worst.votes["good"] == 0.0  # the most reliable one was outvoted


def test_the_same_labels_give_the_same_figures(tmp_path: Path) -> None:
    items = pair_rows(EVERYBODY, 60, 3)
    paths = [write(tmp_path / name, items) for name in ("a.jsonl", "b.jsonl")]
    one, other = (annotators(read_opinions([path], Options()), ["x"]).model_dump() for path in paths)
    assert one == other


def test_large_sources_are_sampled_and_say_so(tmp_path: Path) -> None:
    opinions = read_opinions([write(tmp_path / "pairs.jsonl", pair_rows(EVERYBODY, 120, 3))], Options())
    found = annotators(opinions, ["x"], most_prompts=50)
    assert (found.prompts, found.sampled_prompts, found.overall.agreement.n) == (120, 50, 50)


def test_what_labels_cannot_tell_is_refused(tmp_path: Path) -> None:
    single = read_opinions([write(tmp_path / "one.jsonl", pair_rows(EVERYBODY, 30, 1))], Options())
    found = annotators(single, ["x"])
    assert found.overall.alpha_nominal.value is None
    assert "refused: no pair" in found.overall.alpha_nominal.method
    assert found.below_threshold is None
    assert "nothing is known" in found.warnings[0]
    two = annotators(read_opinions([write(tmp_path / "two.jsonl", pair_rows((GOOD, PLAIN), 30, 2))], Options()), ["x"])
    assert all(row.reliability.value is None and row.gap.value is None for row in two.annotators)
    assert "3 annotators" in two.annotators[0].reliability.method
    bare = [{key: row[key] for key in ("prompt", "chosen", "rejected")} for row in pair_rows(EVERYBODY, 5, 1)]
    with pytest.raises(DataError, match="no row has annotations"):
        read_opinions([write(tmp_path / "bare.jsonl", bare)], Options())


def votes(rights: dict[str, Sequence[bool]]) -> Opinions:
    """Each annotator labels the first pairs: right or wrong."""
    count = max(map(len, rights.values()))
    return labeled([{name: own[at] for name, own in rights.items() if at < len(own)} for at in range(count)])


def labeled(pairs: Sequence[dict[str, bool]]) -> Opinions:
    """Of each pair, who was right."""
    table = [(at, name, right) for at, pair in enumerate(pairs) for name, right in pair.items()]
    count, names = len(pairs), sorted({name for _, name, _ in table})
    numbers = np.arange(2 * count).reshape(-1, 2)
    unknown = np.full(len(table), np.nan)
    return Opinions(
        kind="pairs", units=[f"row {at + 1}" for at in range(count)], rows=np.arange(count) + 1,
        prompts=[f"p{at}" for at in range(count)], longer=np.full(count, np.nan), responses=numbers, annotators=names,
        unit=np.array([at for at, _, _ in table]), who=np.array([names.index(name) for _, name, _ in table]),
        value=np.array([float(right) for _, _, right in table]), grade=unknown, shown=unknown,
    )  # fmt: skip


def test_a_colleague_of_few_labels_makes_nobody_look_bad() -> None:
    rng = np.random.default_rng(4)
    # Eight easy pairs, on which everybody is right, then harder ones.
    equal = {name: [True] * 8 + (rng.random(392) < 0.8).tolist() for name in ("a", "b", "c")}
    lucky = annotators(votes({**equal, "lucky": [True] * 8}), ["x"])
    assert lucky.retrain == {}
    by_name = {row.name: row.gap for row in lucky.annotators}
    assert all(abs(by_name[name].value or 1) < 0.05 for name in "abc")
    assert by_name["a"].low is not None
    # Four labels that miss are no proof, however little the resamples of them spread.
    unlucky = annotators(votes({**equal, "unlucky": [False] * 4}), ["x"])
    assert unlucky.retrain == {}
    (few,) = (row for row in unlucky.annotators if row.name == "unlucky")
    assert few.gap.high is not None
    assert few.gap.high < 0
    assert (few.p_holm or 0) > 0.05
    bad = annotators(votes({**equal, "bad": (rng.random(400) < 0.5).tolist()}), ["x"])
    assert list(bad.retrain) == ["bad"]


def test_who_shares_pairs_with_a_bad_annotator_is_not_charged_for_it() -> None:
    rng = np.random.default_rng(0)
    right = {"a": 0.9, "b": 0.9, "c": 0.9, "bad": 0.5}
    meetings = [("a", "b")] * 200 + [("a", "c")] * 200 + [("b", "c")] * 200 + [("a", "bad")] * 400
    found = annotators(labeled([{name: rng.random() < right[name] for name in met} for met in meetings]), ["x"])
    gap = next(row.gap for row in found.annotators if row.name == "a")
    assert gap.high is not None
    assert gap.high < 0  # as often as not, a met a coin
    assert list(found.retrain) == ["bad"]


def test_a_place_in_a_list_of_labels_is_no_person(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    items = [
        {"prompt": f"q{at}", "response_1": "one two", "response_2": "three",
         "labels": [{"preferred": int(1 + (rng.random() < 0.2))} for _ in range(3)]}
        for at in range(60)
    ]  # fmt: skip
    found = annotators(read_opinions([write(tmp_path / "labels.jsonl", items)], Options()), ["x"])
    assert [row.name for row in found.annotators] == ["anonymous-1", "anonymous-2", "anonymous-3"]
    for row in found.annotators:
        assert row.labels == 60
        for figure in (row.leave_one_out, row.gap, row.reliability, row.longer_preferred, row.longer_gap):
            assert figure.value is None
            assert "no names" in figure.method
    assert found.overall.alpha_nominal.low is not None
    assert found.overall.agreement.value == pytest.approx(0.68, abs=0.1)
    assert (found.between, found.retrain) == ([], {})
    assert "180 of 180 labels do not say whose they are" in " ".join(found.warnings)
    checked(annotators_page(found.model_dump(mode="json", by_alias=True)))


def test_a_damaged_file_and_equal_responses(tmp_path: Path) -> None:
    items = pair_rows((GOOD, PLAIN), 120, 2)
    whole = gzip.compress("".join(json.dumps(one) + "\n" for one in items).encode())
    (cut := tmp_path / "cut.jsonl.gz").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DataError, match="gzip stream is damaged"):
        read_opinions([cut], Options())
    items[3]["rejected"] = items[3]["chosen"]
    found = read_opinions([write(tmp_path / "pairs.jsonl", items)], Options())
    assert (len(found.units), len(found.value), found.unusable) == (119, 238, 1)


def test_labels_of_one_annotator_are_one_opinion(tmp_path: Path) -> None:
    """The warning before training counts as the dashboard does."""
    items = pair_rows((GOOD, NOISY), 60, 2, seed=3)
    rows = [{"prompt_id": row["prompt"], "annotations": row["annotations"] * 3} for row in items]
    for row in rows[::4]:  # one of the two says both
        row["annotations"] = [*row["annotations"], {"annotator": "good", "prefers_first": True},
                              {"annotator": "good", "prefers_first": False}]  # fmt: skip
    write(tmp_path / "pairs.jsonl", rows)
    found = alpha_of_pairs(tmp_path)
    assert found is not None
    written = [row | {"annotations": made["annotations"]} for row, made in zip(items, rows, strict=True)]
    (tmp_path / "other").mkdir()
    board = annotators(read_opinions([write(tmp_path / "other" / "p.jsonl", written)], Options()), ["x"])
    assert found.value == pytest.approx(board.overall.alpha_nominal.value)
    alone = [{"prompt_id": "p", "annotations": row["annotations"][:1] * 3} for row in rows]
    write(tmp_path / "pairs.jsonl", alone)
    assert alpha_of_pairs(tmp_path) is None


def test_too_many_annotators_are_refused_and_large_tables_sampled(monkeypatch: pytest.MonkeyPatch) -> None:
    many = votes({f"a{at:04}": [True] for at in range(2001)})
    with pytest.raises(DataError, match="2,001 annotators; expected at most 2,000"):
        annotators(many, ["x"])
    monkeypatch.setattr("workbench.opinions_table.MOST_CELLS", 100)
    few = annotators(votes({name: [True] * 50 for name in "abcd"}), ["x"])
    assert (few.prompts, few.sampled_prompts) == (50, 25)


def test_an_estimate_at_the_end_keeps_the_spread_of_its_resamples() -> None:
    drawn = np.random.default_rng(0).uniform(0.7, 1.0, 100)
    sure = _interval(1.0, np.append(drawn, np.ones(100)), 50)
    assert sure.low is not None
    assert sure.low < 0.999999
    assert (sure.value, sure.high) == (1.0, 1.0)
    inside = _interval(0.8, drawn, 50)
    assert 0.0 < (inside.low or 0) < 0.8 < (inside.high or 0) < 1.0


def test_ratings_get_ordinal_and_interval_alpha_and_spearman(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    items = []
    for at in range(200):
        strength = rng.normal()
        notes = []
        for name, noise in (("a", 0.2), ("b", 0.4), ("c", 3.0)):
            rating = int(np.clip(round(2 * (strength + noise * rng.normal())), -3, 3))
            notes.append({"annotator": name, "prefers_first": rating > 0, "rating": rating})
        items.append({"prompt": f"q{at}", "chosen": "x y", "rejected": "z", "annotations": notes})
    found = annotators(read_opinions([write(tmp_path / "rated.jsonl", items)], Options()), ["x"])
    ordinal, interval = found.overall.alpha_ordinal, found.overall.alpha_interval
    assert ordinal is not None
    assert interval is not None
    assert ordinal.value == pytest.approx(interval.value or 0, abs=0.1)
    assert ordinal.low is not None
    rho = {(row.a, row.b): row.spearman for row in found.between}
    assert (rho["a", "b"].value or 0) > 0.8 > (rho["a", "c"].value or 0)  # type: ignore[union-attr]


def verdicts(judge: str, wins: Sequence[float], order: Any = "first_shown_first") -> list[Judgment]:
    return [
        Judgment(
            prompt_id=f"p{at}", judge=judge, first_id="x1", second_id="y1", preference=win, first="base",
            second="model", order=order, first_length=10 + at % 3, second_length=11,
        )
        for at, win in enumerate(wins)
    ]  # fmt: skip


def test_judges_are_annotators_and_keep_the_order_of_their_systems() -> None:
    wins = [1.0] * 90 + [0.0] * 10
    turned = [
        Judgment(
            prompt_id=one.prompt_id, judge="two", first_id=one.second_id, second_id=one.first_id,
            preference=1 - (one.preference or 0), first=one.second, second=one.first, order="second_shown_first",
        )
        for one in verdicts("two", wins)
    ]  # fmt: skip
    opinions = opinions_of_judgments([*verdicts("one", wins), *turned])
    found = annotators(opinions, ["x"])
    assert (found.pairs, found.shared) == (100, 100)
    assert found.between[0].agreement.value == 1.0
    assert found.overall.alpha_nominal.value == pytest.approx(1.0)
    # Two judges who flip independent coins with 90% agree on 82% by that alone: kappa is 0, not 0.64.
    rng = np.random.default_rng(1)
    coins = [(rng.random(4000) < 0.9).astype(float).tolist() for _ in range(2)]
    lucky = annotators(opinions_of_judgments([*verdicts("a", coins[0]), *verdicts("b", coins[1])]), ["x"])
    assert lucky.overall.agreement.value == pytest.approx(0.82, abs=0.03)
    assert lucky.between[0].kappa.value == pytest.approx(0.0, abs=0.06)


def test_position_bias_of_a_judge_that_saw_both_orders() -> None:
    both = [*verdicts("j", [0.0] * 60), *verdicts("j", [1.0] * 60, "second_shown_first")]
    found = annotators(opinions_of_judgments(both), ["x"]).annotators[0]
    assert found.first_shown_preferred.value == 1.0
    assert (found.labels, found.pairs) == (120, 60)
    one_order = annotators(opinions_of_judgments(verdicts("j", [0.0] * 60)), ["x"]).annotators[0]
    assert one_order.first_shown_preferred.value is None


def test_circles_are_counted_by_annotator_and_prompt() -> None:
    def beats(prompt: int, a: str, b: str) -> Judgment:
        return Judgment(prompt_id=f"p{prompt}", judge="j", first_id=a, second_id=b, preference=0.0, first=a, second=b)

    circle = [("a", "b"), ("b", "c"), ("c", "a")]
    line = [("a", "b"), ("b", "c"), ("a", "c")]
    judgments = [beats(at, *pair) for at in range(4) for pair in (circle if at == 0 else line)]
    triples = annotators(opinions_of_judgments(judgments), ["x"]).annotators[0].triples
    assert (triples.judged, triples.circular, triples.rate.value) == (4, 1, 0.25)


@pytest.mark.skipif(not ALPACA.is_dir(), reason="needs ../shared/data/alpaca_eval")
def test_three_judges_of_a_real_model() -> None:
    files = sorted(ALPACA.glob("cohere.*.json.gz"))
    found = annotators(read_opinions(files, Options()), [path.name for path in files])
    assert (found.pairs, found.shared, found.labels) == (1610, 805, 2415)  # two judges share a baseline
    alpha = found.overall.alpha_nominal
    assert alpha.low is not None
    assert 0.5 < alpha.low < (alpha.value or 0) < 0.75
    assert found.annotators[1].leave_one_out.value is None


# ---- pages


class Checker(HTMLParser):
    """Collects what a page would load or run, and its tags."""

    def __init__(self) -> None:
        super().__init__()
        self.loads: list[str] = []
        self.open: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.loads += [
            str(value) for name, value in attrs if name in ("src", "href") and not str(value).startswith("#")
        ]
        self.loads += [name for name, _ in attrs if name.startswith("on") or name == "style"]
        if tag not in ("meta", "br", "rect", "line", "circle", "polyline"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag not in ("rect", "line", "circle", "polyline"):
            assert self.open.pop() == tag


def checked(page: str) -> None:
    checker = Checker()
    checker.feed(page)
    assert checker.loads == []
    assert checker.open == []
    assert page.count("<script") == 1
    assert "http-equiv" in page


def test_names_cannot_break_out_of_the_page(tmp_path: Path) -> None:
    evil = '<script>alert("x")</script>|[a](http://x)\u202e'
    people = [Annotator(name=f"{evil}{at}", temperature=0.5) for at in range(3)]
    items = pair_rows(people, 40, 3)
    plain = annotators(read_opinions([write(tmp_path / "p.jsonl", items)], Options()), [evil]).model_dump(
        mode="json", by_alias=True
    )
    page = annotators_page(plain)
    checked(page)
    assert "<script>alert" not in page
    assert "&lt;script&gt;" in page


def test_describe_says_what_is_there(tmp_path: Path, model_folder: Path) -> None:
    rng = np.random.default_rng(0)
    subjects = (["cooking", "soup", "kitchen", "salt"], ["engine", "car", "wheel", "brake"])
    items = []
    for at in range(120):
        words = rng.permutation(subjects[at % 2]).tolist()
        longer = " ".join(["word"] * int(rng.integers(3, 30)))
        items.append(
            {
                "prompt": f"{' '.join(words)} x{at}", "chosen": f"{longer} more", "rejected": "the",
                "target_margin": at / 60, "annotations": [{"annotator": "<b>ann</b>", "prefers_first": True}],
            }
        )  # fmt: skip
    items.append({"prompt": "p", "chosen": "", "rejected": "x"})
    path = write(tmp_path / "pairs.jsonl", items)
    options = Options(fractions={"validation": 0.2, "test": 0.2})
    found = describe(path, options, model=model_folder, n_topics=2)
    assert (found["rows"], found["pairs"], found["prompts"]) == (121, 120, 120)
    assert found["findings"][0]["code"] == "empty_text"
    assert sum(one["pairs"] for one in found["splits"].values()) == 120
    assert found["longer_chosen"]["words"]["value"] == 1.0
    assert all(one["longer_wins"]["value"] == 1.0 for one in found["win_by_length"])
    assert sum(one["pairs"] for one in found["win_by_length"]) == 120
    for unit in ("characters", "words", "tokens"):
        for role in ("prompt", "chosen", "rejected"):
            one = found["lengths"][unit][role]
            assert sum(one["histogram"]["counts"]) == 120
            assert one["percentiles"]["0"] <= one["mean"]["value"] <= one["percentiles"]["100"]
    topics = found["topics"]["topics"]
    assert found["topics"]["stability"] == pytest.approx(1.0)
    assert [set(one["words"][:4]) for one in topics] in (
        [set(one) for one in subjects], [set(one) for one in subjects[::-1]],
    )  # fmt: skip
    assert sum(one["prompts"] for one in topics) == 120
    assert found["margins"]["pairs"] == 120
    assert found["annotations"]["labels_per_pair"] == {"1": 120}
    assert found == describe(path, options, model=model_folder, n_topics=2)
    (tmp_path / "shuffled").mkdir()
    shuffled = write(tmp_path / "shuffled" / "pairs.jsonl", items[::-1])
    assert describe(shuffled, options, n_topics=2)["topics"]["topics"] == topics  # the order of rows does not matter
    checked(describe_page(found))
    few = describe(write(tmp_path / "few.jsonl", items[:5]), options)
    assert few["topics"]["method"].startswith("refused")
    checked(describe_page(few))
    assert describe(write(tmp_path / "none.jsonl", items[120:]), options)["pairs"] == 0


def test_figures_stand_alone_and_escape() -> None:
    chart = svg.dots([svg.Dot(label='<x> & "y"', value=0.5, low=0.4, high=0.6)], title="<t>", even=0.5)
    alone = svg.standalone(chart)
    assert alone.startswith("<svg ")
    assert "<x>" not in alone
    assert "http" not in alone.replace("http://www.w3.org/2000/svg", "")


# ---- the command, and the warning before training


def test_the_commands_write_page_figures_and_json_and_track_them(tmp_path: Path) -> None:
    path = write(tmp_path / "pairs.jsonl", pair_rows(EVERYBODY, 40, 3))
    home = tmp_path / "home"
    words = ["data", "annotators", str(path), "--home", str(home), "--json", "--track", "--min-alpha", "0.99"]
    result = CliRunner().invoke(main, words)
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    assert found["schema"] == 1
    assert found["below_threshold"] is True
    folder = home / "data" / "pairs"
    assert json.loads((folder / "annotators.json").read_text()) == found
    assert (folder / "annotators.html").read_text().startswith("<!doctype html>")
    assert list((folder / "figures").glob("annotators_*.svg"))
    stored = {path.name for path in (home / "artifacts").rglob("*") if path.is_file()}
    assert {"annotators.html", "annotators.json", "annotators_overall.svg"} <= stored
    people = CliRunner().invoke(main, words[:-4]).stdout
    assert "Krippendorff's alpha" in re.sub(r"\s+", " ", people) or '"schema"' in people


def test_compare_is_warned_before_training(tmp_path: Path) -> None:
    noisy = [Annotator(name=f"n{at}", careless=1.0) for at in range(3)]
    for folder, people, warned in (("bad", noisy, True), ("fine", (GOOD, GOOD, GOOD), False)):
        artifact = tmp_path / folder
        artifact.mkdir()
        named = [
            Annotator(name=f"{at}", temperature=one.temperature, careless=one.careless) for at, one in enumerate(people)
        ]
        items = [
            row
            | {
                "pair_id": str(at),
                "prompt_id": str(at),
                "annotations": [{k: n[k] for k in ("annotator", "prefers_first")} for n in row["annotations"]],
            }
            for at, row in enumerate(pair_rows(named, 200, 3))
        ]
        write(artifact / "pairs.jsonl", items)
        told: list[str] = []
        watch = LabelWatch(0.2, told.append)
        watch.hear(SimpleNamespace(kind="started", name="pairs", artifact=None))  # type: ignore[arg-type]
        assert told == []
        for _ in range(2):
            watch.hear(SimpleNamespace(kind="finished", name="pairs", artifact=SimpleNamespace(path=artifact)))  # type: ignore[arg-type]
        assert bool(told) is warned
        assert told == watch.found
        assert len(told) <= 1
    write(artifact / "pairs.jsonl", [{"annotations": []}] * 3)
    assert alpha_of_pairs(artifact) is None


def test_opinions_need_no_order_of_rows() -> None:
    judgments = [*verdicts("b", [1.0, 0.0, 1.0]), *verdicts("a", [1.0, 1.0, 1.0])]

    def seen(opinions: Opinions) -> set[tuple[str, str, float]]:
        return {
            (opinions.prompts[u], opinions.annotators[j], v)
            for u, j, v in zip(opinions.unit, opinions.who, opinions.value, strict=True)
        }

    assert seen(opinions_of_judgments(judgments)) == seen(opinions_of_judgments(judgments[::-1]))


def test_pairs_of_a_run_say_who_saw_what_first_and_empty_responses_are_left_out(tmp_path: Path) -> None:
    items = pair_rows(EVERYBODY, 300, 3, seed=2)
    shown = [[note.pop("chosen_first") for note in row["annotations"]] for row in items]
    items[0] |= {"rejected": " "}
    write(tmp_path / "pairs.jsonl", items)
    (tmp_path / "shown.json").write_text(json.dumps(shown))
    found = annotators(read_opinions([tmp_path], Options()), ["run"])
    assert found.pairs == 299
    assert any("1 rows cannot be used" in one for one in found.warnings)
    rows = {row.name: row.first_shown_preferred for row in found.annotators}
    assert (rows["first"].low or 0) > 0.55
    assert (rows["good"].value or 0) == pytest.approx(0.5, abs=0.08)


def test_coin_flips_have_no_reliability(tmp_path: Path) -> None:
    coins = [Annotator(name=f"coin{at}", careless=1.0) for at in range(4)]
    path = write(tmp_path / "pairs.jsonl", pair_rows(coins, 200, 3, seed=3))
    found = annotators(read_opinions([path], Options()), ["x"])
    assert abs(found.overall.alpha_nominal.value or 0) < 0.15
    assert found.below_threshold is True
    assert all(row.reliability.value is None for row in found.annotators)
    assert "beyond chance" in found.annotators[0].reliability.method
    assert {one.posterior for one in found.relabel} == {0.5}
