"""What is said of curves: matched KL, areas, over-optimization, pairs; and what is left out."""

from __future__ import annotations

from typing import Any

from results_example import estimate, results

from workbench.report import curves, wording_curves
from workbench.report.terminal import make_console, print_results


def turned() -> dict[str, Any]:
    data = results()
    ppo, bon = data["overoptimization"]
    ppo |= {
        "selector": "own", "truth": "gold", "goodhart": True, "onset_kl": {"value": 9.0, "low": 5.0, "high": 15.0},
        "proxy_since_peak": estimate(1.26, 0.2), "gap": estimate(1.1), "residual_rms": 0.05, "lack_of_fit_p": 0.4,
    }  # fmt: skip
    data["overoptimization"] += [bon | {"selector": "gold"}, ppo | {"form": "bon"}]
    where = {"reward": "gold_reward", "kl_kind": "mc_k1", "prompt_set": "validation"}
    refused = {"value": None, "low": None, "high": None, "method": "refused: its KL reaches 1, nothing is extrapolated"}
    data["matched_kl"] = [
        where
        | {"arm": arm, "against": None, "kl": kl, "estimate": estimate(kl / 4) if kl < 9 or arm == "ppo" else refused}
        for arm in ("ppo", "dpo")
        for kl in (0.1, 0.5, 1.0, 2.0, 5.0, 9.0)
    ]
    data["matched_kl"].append(where | {"arm": "ppo", "against": "dpo", "kl": 1.0, "estimate": estimate(0.2)})
    data["matched_kl"].append(
        where
        | {"arm": "ppo", "against": "best_of_n", "kl": 1.5, "estimate": estimate(-0.34)}
        | {"kl_kind": "mixed", "prompt_set": "test"}
    )
    data["frontier_area"] = [
        where | {"arm": "ppo", "against": "dpo", "kl_to": 5.0, "estimate": estimate(0.2)},
        where | {"arm": "ppo", "against": None, "kl_to": 5.0, "estimate": estimate(1.2)},
        where | {"arm": "dpo", "against": None, "kl_to": None, "estimate": refused},
    ]
    effect = {"kind": "ppo", "fewer": "few", "more": "many", "pairs_fewer": 250, "pairs_more": 4000}
    data["pairs_effect"] = [
        effect
        | {"less_fall": estimate(1.0, 0.2), "turns_later": True, "best_kl_fewer": [1, 2], "best_kl_more": [4, None]},
        effect
        | {"less_fall": estimate(0.1, 0.2), "turns_later": None, "best_kl_fewer": [0, 2], "best_kl_more": [1, 3]},
        effect | {"less_fall": refused, "turns_later": None, "best_kl_fewer": None, "best_kl_more": None},
    ]
    return data


def test_a_form_more_is_no_sentence_more_and_the_gold_selector_is_named() -> None:
    lines = [line for _, line in wording_curves.overoptimization_lines(turned())]
    assert [line.split(":")[0] for line in lines] == ["ppo", "best_of_n", "best_of_n (gold selector)"]
    assert "proxy rose by 1.26 [1.06, 1.46]" in lines[0]
    assert "onset at KL 9.00 [5.00, 15.0]" in lines[0]
    assert lines[0].endswith("over-optimized.")
    assert wording_curves.goodhart_arms(turned()) == ["ppo"]
    assert len(wording_curves.fit_table(turned())[1]) == 4


def test_a_fall_without_a_proven_rise_of_the_proxy_is_not_called_over_optimized() -> None:
    data = turned()
    data["overoptimization"][0] |= {"goodhart": False, "proxy_since_peak": estimate(0.1, 0.2)}
    (alarm, line), *_ = wording_curves.overoptimization_lines(data)
    assert alarm
    assert "within the noise" in line
    data["overoptimization"][0] |= {"proxy_since_peak": estimate(-0.5, 0.2)}
    (_, line), *_ = wording_curves.overoptimization_lines(data)
    assert "proxy fell by 0.50 [0.30, 0.70]" in line
    assert line.endswith("it got worse by its own proxy too.")
    data["overoptimization"][0] |= {"proxy_since_peak": estimate(-0.1, 0.2)}
    (_, line), *_ = wording_curves.overoptimization_lines(data)
    assert line.endswith("the proxy's fall is not beyond the noise, so it neither saw this nor was misled.")


def test_the_proxy_is_named_and_an_arm_that_did_not_optimize_it_is_not_over_optimized() -> None:
    data = turned()
    data["overoptimization"][0] |= {"proxy": "few", "proxy_role": "own"}
    (_, line), *_ = wording_curves.overoptimization_lines(data)
    assert "while its proxy few rose by" in line
    assert line.endswith("over-optimized.")
    data["overoptimization"][0] |= {"proxy": "main", "proxy_role": "shared"}
    (_, line), *_ = wording_curves.overoptimization_lines(data)
    assert "while the shared reward model main rose by" in line
    assert line.endswith("that reward model, which it did not optimize, is misled.")
    data["overoptimization"][0] |= {"proxy_since_peak": estimate(-0.5, 0.2)}
    (_, line), *_ = wording_curves.overoptimization_lines(data)
    assert line.endswith("it got worse by that reward model too.")


def test_another_truth_is_named() -> None:
    data = turned()
    data["overoptimization"][0] |= {"truth": "judge"}
    (_, line), *_ = wording_curves.overoptimization_lines(data)
    assert "the judge's win rate fell by" in line


def test_matched_table_shows_a_few_kls_and_leaves_gaps_where_nothing_is_extrapolated() -> None:
    header, rows = wording_curves.matched_table(turned())
    assert header[0] == "arm"
    assert len(header) == 5
    assert header[-1] == "KL 9.00"
    assert rows[0][-1] != "-"
    assert rows[1][-1] == "-"
    assert wording_curves.matched_table(results()) == ([], [])


def test_selected_policies_stand_beside_best_of_n() -> None:
    _, rows = wording_curves.beside_table(turned())
    assert rows == [["ppo less best_of_n", "1.50", "-0.34 [-0.44, -0.24]"]]
    assert "best\\_of\\_n | 1.50 | -0.34 [-0.44, -0.24]" in curves.matched(turned())


def test_areas_stand_before_differences_and_say_why_they_are_missing() -> None:
    _, rows = wording_curves.area_table(turned())
    assert [row[0] for row in rows] == ["ppo", "dpo", "ppo less dpo"]
    assert "nothing is extrapolated" in rows[1][2]


def test_pairs_are_resolved_or_said_not_to_be() -> None:
    clear, open_ = wording_curves.pairs_lines(turned())
    assert "smaller turn: yes, of these checkpoints (1 run seed))" in clear
    assert "later turn: yes" in clear
    assert "4.00 to the end" in clear
    assert open_.count("not resolved") == 2
    data = turned()
    data["seeds"]["runs"] = [0, 1, 2, 3, 4]
    assert "smaller turn: yes)" in wording_curves.pairs_lines(data)[0]


def test_report_and_terminal_carry_all_of_it() -> None:
    import io

    page = curves.matched(turned()) + curves.overoptimization(turned())
    for text in ("At matched KL", "ppo less dpo", "Goodhart", "YES", "More pairs", "gold selector"):
        assert text in page
    assert curves.matched(results()) == ""
    shown = io.StringIO()
    print_results(turned(), make_console(file=shown))
    for text in ("matched KL", "over-optimized.", "smaller turn: yes"):
        assert text in " ".join(shown.getvalue().split())
