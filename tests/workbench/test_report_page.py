"""report.html: one file that loads nothing, that no text breaks out of, with everything that report.md says."""

from __future__ import annotations

import base64
import copy
import hashlib
import json
import re
import shutil
import subprocess
from collections import Counter
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from tests.workbench.report_page_example import HOSTILE, samples, write
from tests.workbench.results_example import estimate, results
from workbench.cli import main
from workbench.errors import DataError
from workbench.report import limits, summary
from workbench.report.charts import Plot, looks, reach, ticks
from workbench.report.page import report_page, write_report_page
from workbench.report.prose import prose
from workbench.report.shell import asset, embedded, page, visible
from workbench.report.summary import markdown

VOID = {"meta", "input", "br", "img", "link", "hr", "path", "rect", "circle", "polyline", "polygon"}


class Read(HTMLParser):
    """What a browser would see: elements, attributes, texts, and whether every element is closed."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: Counter[str] = Counter()
        self.attributes: list[tuple[str, str, str]] = []
        self.open: list[str] = []
        self.inside: dict[str, list[str]] = {"script": [], "style": []}
        self.ids: Counter[str] = Counter()
        self.words: list[str] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags[tag] += 1
        self.attributes += [(tag, name, value or "") for name, value in attrs]
        self.ids.update(value or "" for name, value in attrs if name == "id")
        if tag in self.inside:
            self.inside[tag].append("")
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        if tag not in VOID:
            assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] in self.inside:
            self.inside[self.open[-1]][-1] += data
        else:
            self.words.append(data)


def hostile() -> dict[str, Any]:
    """Results whose every name and message is an attack."""
    found = copy.deepcopy(results())
    for place, attack in enumerate(HOSTILE[:6]):
        found["arms"][attack] = copy.deepcopy(found["arms"]["ppo"]) | {"diverged": attack, "selected": attack}
        found["frontier"].append(found["frontier"][place] | {"arm": attack, "label": attack})
        found["match"]["checks"].append({"name": attack, "ok": "not_applicable", "detail": attack})
        found["agreement"][attack] = copy.deepcopy(found["agreement"]["heldout"])
    found["comparison"] = HOSTILE[0]
    found["warnings"] = list(HOSTILE)
    found["decision"] = {"verdict": "winner", "arms": [HOSTILE[1]], "scope": "checkpoints", "judge": HOSTILE[2],
                         "margin": 0.03, "sentence": HOSTILE[1], "excluded": {HOSTILE[2]: HOSTILE[0]}}  # fmt: skip
    for one in found["disagreements"]:
        one.update(dict.fromkeys(("prompt", "explicit_prefers", "implicit_prefers"), HOSTILE[1]))
    return found


def attacked() -> str:
    rows = samples(8, HOSTILE)
    for one in rows:
        one["prompt"] = HOSTILE[int(one["prompt_id"][1:])] + one["prompt_id"]
    return report_page(hostile(), rows, {"name": HOSTILE[1], "nested": {HOSTILE[0]: HOSTILE[2]}})


def test_the_page_holds_what_the_report_says() -> None:
    text = report_page(results(), samples())
    seen = Read(text)
    assert seen.open == []
    assert [name for name, count in seen.ids.items() if count > 1] == []
    told = " ".join(" ".join(seen.words).split())
    for heading in re.findall(r"(?m)^## (.*)$", markdown(results())):
        assert heading in told or heading in ("Against sft", "Caveats", "Figures"), heading
    # One source of words: every cell of the arms' table stands on the page as it stands in report.md.
    for cell in ("0.71 [0.68, 0.74]", "1.25 [1.13, 1.37]", "≤ 1.83", "1987 pairs, sha256:cd34"):
        assert cell in told
    assert told.index("has the highest win rate") < told.index("Arms") + 2000
    assert {"fig-frontier", "fig-overoptimization", "fig-agreement", "fig-reliability", "fig-win-rates"} <= set(
        seen.ids
    )


def test_a_section_that_the_page_does_not_know_is_shown_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(summary.SECTIONS, "new", lambda _: "## Something new\n\n| a | b |\n|---|---:|\n| c | 1 |")
    seen = Read(report_page(results()))
    assert seen.ids["new"] == 1
    assert "Something new" in seen.words


def test_nothing_is_loaded_and_only_the_known_script_may_run() -> None:
    text = report_page(results(), samples())
    seen = Read(text)
    assert "http://" not in text.replace("http://www.w3.org", "")
    assert not {"src", "href", "style", "action"} & {
        name for _, name, value in seen.attributes if not (name == "href" and value.startswith("#"))
    }
    assert [name for _, name, _ in seen.attributes if name.startswith("on")] == []
    policy = next(v for tag, name, v in seen.attributes if (tag, name) == ("meta", "content") and "default-src" in v)
    assert policy.startswith("default-src 'none'")
    assert "unsafe" not in policy
    data, script = seen.inside["script"]
    (style,) = seen.inside["style"]
    for kind, held in (("style", style), ("script", script)):
        digest = base64.b64encode(hashlib.sha256(held.encode()).digest()).decode()
        assert f"{kind}-src 'sha256-{digest}'" in policy
    assert len(json.loads(data)["prompts"]) == 6


def test_hostile_names_and_samples_change_nothing() -> None:
    plain, text = Read(report_page(results(), samples())), attacked()
    seen = Read(text)
    assert seen.open == []
    assert seen.tags["script"] == plain.tags["script"] == 2
    assert seen.inside["script"][1] == plain.inside["script"][1]
    assert seen.tags["img"] == seen.tags["a"] - plain.tags["a"] == 0
    assert [name for _, name, _ in seen.attributes if name.startswith("on")] == []
    assert not re.search("[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]", text)
    held = json.loads(seen.inside["script"][0])
    texts = [one[2] for prompt in held["prompts"] for one in prompt["rows"]]
    assert max(map(len, texts)) < 4100
    assert any("[…cut: 100000 characters in all]" in one for one in texts)
    assert any("⟨U+202E⟩" in one for one in texts)
    assert any(one.startswith("␛]0;pwned␇") for one in texts)


def test_a_real_browser_runs_nothing_of_a_hostile_sample(tmp_path: Path) -> None:
    browser = shutil.which("chromium") or shutil.which("google-chrome") or shutil.which("chrome")
    if browser is None:
        pytest.skip("no chromium")
    path = tmp_path / "report.html"
    path.write_text(attacked(), encoding="utf-8")
    done = subprocess.run(
        [browser, "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path / 'profile'}",
         "--virtual-time-budget=3000", "--dump-dom", path.as_uri()],
        capture_output=True, text=True, check=False, timeout=300,
    )  # fmt: skip
    assert done.stdout.startswith("<!DOCTYPE html>"), done.stderr[-500:]
    title = re.search(r"<title>(.*?)</title>", done.stdout, re.DOTALL)
    assert title is not None
    assert title[1].startswith("&lt;script&gt;document.title=")
    cards = done.stdout[done.stdout.index('id="cards"') :]
    assert cards.count('<article class="card">') == 10  # our own script ran, as its digest is named
    assert "<img" not in cards
    assert re.search(r"<mark>[^<]+</mark>", cards)


def test_tables_have_scopes_and_numbers_to_the_right() -> None:
    text = prose(
        "## Who\n\n| arm | rate | why |\n|---|---:|---:|\n| a\\_b | 0.71 [0.68, 0.74] | too few |\n| c | - | - |", ""
    )
    assert '<th scope="col">arm</th>' in text
    assert '<th scope="row">a_b</th>' in text
    assert '<td class="n">0.71 [0.68, 0.74]</td>' in text
    assert "<td>too few</td>" in text
    assert '<td class="n">-</td>' in text
    assert 'aria-label="Who"' in text
    assert "style=" not in text


def test_long_tables_are_folded_only_where_asked() -> None:
    rows = "\n".join(f"| {n} | {n} |" for n in range(5))
    head = "| a | b |\n|---|---:|\n"
    assert "<details>" not in prose(head + rows)
    assert "<summary>Table of 5 rows</summary>" in prose(head + rows, fold=4)


def test_markdown_brings_in_no_html() -> None:
    assert prose("<b>x</b> [l](http://x) ![i](y) <http://z>") == (
        "<p>&lt;b&gt;x&lt;/b&gt; [l](http://x) ![i](y) &lt;http://z&gt;</p>\n"
    )


def test_hidden_signs_are_shown() -> None:
    assert visible("a\tb\nc é 漢 👩\u200d🚀 \u00a0") == "a\tb\nc é 漢 👩\u200d🚀 \u00a0"
    assert visible("\x1b[0m\x7f\u202e\ufeff") == "␛[0m⟨U+007F⟩⟨U+202E⟩⟨U+FEFF⟩"


def test_embedded_data_cannot_end_its_element() -> None:
    text = embedded("d", ["</script><!--\u2028", {"a": "&"}])
    assert text.count("</script>") == 1
    assert json.loads(text[text.index(">") + 1 : text.rindex("<")]) == ["</script><!--\u2028", {"a": "&"}]


def test_a_page_needs_no_contents_and_no_data() -> None:
    seen = Read(page(title="t", body="<p>x</p>"))
    assert (seen.tags["nav"], seen.tags["script"], seen.open) == (0, 1, [])


# ------------------------------------------------------------------------------------------ what is not there


def test_what_was_not_established_names_power_controls_and_refusals() -> None:
    found = results()
    found["head_to_head"][0]["minimum_detectable_effect"] = 0.07
    found["match"]["checks"].append({"name": "same kl", "ok": False, "detail": "dpo by its trainer"})
    found["arms"]["dpo"]["gold_gain"] = estimate(None, method="refused: no gold on 3 prompts")
    found["arms"]["ppo"]["gold_gain"] = estimate(None, method="refused: no gold on 7 prompts")
    told = limits.section(found)
    assert "One run seed" in told
    assert "1 of 5 comparisons cannot be told" in told
    assert "| ppo against dpo | win rate by gold | 0.53 [0.48, 0.58] | 0.07 |" in told
    assert "| certificate: same kl | **FAILED** | dpo by its trainer |" in told
    assert (
        "| refused: no gold on 7 prompts (and alike, with other numbers) | 2 | arms ppo gold gain; arms dpo gold gain |"
        in told
    )
    assert told in markdown(found)


def test_length_is_suspect_only_where_nothing_is_left_without_it() -> None:
    found = results()
    arm = found["arms"]["ppo"]
    arm["null_win_rates"] = [estimate(0.72, 0.02, judge="null/longest", baseline="sft")]
    arm["win_rate_length_controlled"] = estimate(0.51, 0.03)
    assert "| ppo: length | **suspect** |" in limits.section(found)
    arm["win_rate_length_controlled"] = estimate(0.6, 0.03)
    assert "suspect" not in limits.section(found)


def test_a_comparison_of_little_still_makes_a_page() -> None:
    found = results()
    for name in ("frontier", "overoptimization", "head_to_head", "ranking", "agreement_trajectory", "disagreements"):
        found[name] = []
    found |= {"agreement": {}, "reward_models": {}, "generalization": None}
    for arm in found["arms"].values():
        arm |= {"gold_reward": None, "win_rate": None, "win_rates": [], "win_rate_length_controlled": None}
    seen = Read(report_page(found))
    assert seen.open == []
    assert "No gold reward" in " ".join(seen.words)
    assert "workbench compare" in " ".join(seen.words)  # how to get the samples
    assert not any(name.startswith("fig-") for name in seen.ids)


# ------------------------------------------------------------------------------------------ charts


def test_ticks_are_round_and_inside() -> None:
    assert ticks(0.03, 1.02) == [0.2, 0.4, 0.6, 0.8, 1.0]
    assert ticks(-12, 37) == [-10, 0, 10, 20, 30]
    assert ticks(2, 2) == [2]


def test_a_root_scale_keeps_order_and_spreads_small_kl() -> None:
    plot = Plot("", x=[0, 100], y=[0, 1], names=("KL", "y"), root=True)
    at = [plot.px(x) for x in (-0.5, 0, 1, 4, 100)]
    assert at == sorted(at)
    assert plot.px(1) - plot.px(0) > 5 * (plot.px(100) - plot.px(99))


def test_one_wide_interval_does_not_squash_the_points() -> None:
    wide = [{"value": v, "low": v - w, "high": v + w} for v, w in ((1.0, 0.1), (2.0, 0.1), (1.5, 900.0))]
    held = reach(wide)
    assert (min(held), max(held)) == (pytest.approx(0.4), pytest.approx(2.6))
    plot = Plot("", x=[0, 1], y=held, names=("x", "y"))
    plot.point(0.5, 1.5, looks({"arms": {"a": {}}})["a"], "tip", across=(-900.0, 900.0))
    bar = re.search(r'class="bar" d="M[\d.]+ ([\d.]+)V([\d.]+)"', plot.parts[-1])
    assert bar is not None
    assert plot.top <= float(bar[2]) < float(bar[1]) <= plot.height - plot.BOTTOM


def test_every_arm_can_be_told_apart_without_color() -> None:
    found = {"arms": {f"a{n}": {} for n in range(14)}}
    worn = [(look.marker, look.dash) for look in looks(found).values()]
    assert len(set(worn[:7])) == 7
    assert len({(look.color, look.marker) for look in looks(found).values()}) == 15  # and sft


# ------------------------------------------------------------------------------------------ command


def test_the_command_writes_the_page_beside_the_results(tmp_path: Path) -> None:
    folder = tmp_path / "results" / "quickstart"
    folder.mkdir(parents=True)
    (folder / "results.json").write_text(json.dumps(results() | {"comparison": "quickstart"}))
    write(folder / "samples.jsonl.gz", samples())
    done = CliRunner().invoke(main, ["report", "--home", str(tmp_path), "--json"])
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout) == {"schema": 1, "page": str(folder / "report.html")}
    assert len(json.loads(Read((folder / "report.html").read_text()).inside["script"][0])["prompts"]) == 6
    other = tmp_path / "elsewhere.html"
    assert CliRunner().invoke(main, ["report", str(folder), "--out", str(other)]).exit_code == 0
    assert other.read_bytes() == (folder / "report.html").read_bytes()


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["report", "nowhere"], "expected one of this home's (quickstart)"),
        (["report", "quickstart", "--out", "results/quickstart/results.json"], "would overwrite the results"),
        (["report", "a", "b", "c"], "expected one or two comparisons, got 3"),
    ],
)
def test_bad_input_is_told_with_exit_2(
    words: list[str], told: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "results" / "quickstart"
    folder.mkdir(parents=True)
    (folder / "results.json").write_text("{}")
    monkeypatch.chdir(tmp_path)
    done = CliRunner().invoke(main, [*words, "--home", str(tmp_path)])
    assert (done.exit_code, told in done.stderr) == (2, True), done.output


def test_no_results_yet_is_told(tmp_path: Path) -> None:
    done = CliRunner().invoke(main, ["report", "--home", str(tmp_path)])
    assert done.exit_code == 2
    assert "run `workbench compare CONFIG` first" in done.stderr


def test_broken_files_are_named(tmp_path: Path) -> None:
    for name in ("samples.jsonl.gz", "config.json"):
        (tmp_path / name).write_bytes(b"neither gzip nor JSON")
        with pytest.raises(DataError, match="run compare again") as found:
            write_report_page(results(), tmp_path)
        assert found.value.where == str(tmp_path / name)
        (tmp_path / name).unlink()


# ------------------------------------------------------------------------------------------ colors


def luminance(color: str) -> float:
    digits = color.lstrip("#")
    digits = "".join(2 * one for one in digits) if len(digits) == 3 else digits
    parts = [int(digits[i : i + 2], 16) / 255 for i in (0, 2, 4)]
    red, green, blue = (one / 12.92 if one <= 0.04045 else ((one + 0.055) / 1.055) ** 2.4 for one in parts)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def contrast(one: str, other: str) -> float:
    """Source: WCAG 2.2, https://www.w3.org/TR/WCAG22/#dfn-contrast-ratio"""
    light, dark = sorted((luminance(one), luminance(other)), reverse=True)
    return (light + 0.05) / (dark + 0.05)


@pytest.mark.parametrize("mode", [0, 1], ids=["light", "dark"])
def test_words_and_lines_stand_out(mode: int) -> None:
    found = re.findall(r"--([a-z0-9-]+):light-dark\((#\w+),(#\w+)\)", asset("shell.css") + asset("report.css"))
    colors = {name: pair[mode] for name, *pair in found}
    for name in ("text", "muted", "link", "good", "bad"):
        assert contrast(colors[name], colors["bg"]) >= 4.5, name
    assert contrast(colors["text"], colors["mark"]) >= 4.5
    for name in ("c0", "c1", "c2", "c3", "c4", "c5", "c6", "ink", "strong-line", "focus"):
        assert contrast(colors[name], colors["bg"]) >= 3, name
