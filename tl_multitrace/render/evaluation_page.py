"""The evaluation on a page: of its own, or as sections of a run's report."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tl_multitrace._version import __version__
from tl_multitrace.evaluation.circuit_report import CircuitReport
from tl_multitrace.evaluation.side_effects import SideEffects
from tl_multitrace.evaluation.stability import Stability
from tl_multitrace.records.record import draws
from tl_multitrace.records.stats import FEW
from tl_multitrace.records.write import write_text
from tl_multitrace.render.embed import asset, page
from tl_multitrace.render.html import Markup, Percent, between, join, table, tag
from tl_multitrace.render.judged import plot_report, plot_side_effects, plot_stability
from tl_multitrace.render.sections import csv_link, section
from tl_multitrace.render.style import inked, to_svg

MOST_ROWS = 200

MEANINGS = {
    "effect": "of patching the circuit; positive: the metric rose",
    "full effect": "of patching every hook group",
    "faithfulness": "what is left where only the circuit keeps its activations; 1: all of it",
    "completeness": "what goes without the circuit, over what goes without anything; equals the share",
    "chance": "random sets of the same size and kinds, on these prompts; interval: 95% of the sets, and their mean",
    "percentile": "share of random sets that the circuit beats, in percent",
    "p_value": "that the effect is nothing, or no more than that of random sets (one-sided)",
    "minimality": "what faithfulness loses without the component",
    "subgroup effect": "on the prompts of one label",
}


@draws(CircuitReport, "write_html")
def write_evaluation(report: CircuitReport, path: str | Path, *, overwrite: bool = False) -> Path:
    """Write an evaluation as one self-contained HTML page.

    Raises:
        FileExistsError: the file exists and ``overwrite`` is False.

    Examples:
        >>> from tl_multitrace.render import write_evaluation
        >>> report = mt.evaluate(circuit, task.pairs, draws=20)
        >>> write_evaluation(report, "evaluation.html").name
        'evaluation.html'
    """
    place = Path(path)
    if place.exists() and not overwrite:
        raise FileExistsError(f"{place} exists. Choose another name, or pass overwrite=True to replace it.")
    header = tag("header", tag("h1", "Evaluation"), tag("p", report.headline()))
    main = tag("main", [evaluation_section(report), examples_section(report)], id="content")
    footer = tag("footer", tag("p", f"Made with tl_multitrace {__version__}."))
    made = page("Evaluation", join([header, main, footer]), scripts=(asset("report.js"),))
    return write_text(place, made, overwrite=overwrite)


def evaluation_section(report: CircuitReport) -> Markup:
    """Every score with its interval, for every ablation; what to beware of first."""
    with inked():
        figure = plot_report(report)
    frame = report.to_dataframe()
    rows = [
        [_named(r, len(report.ablations) > 1), _known(r["value"]), between(r["low"], r["high"]), MEANINGS[r["score"]]]
        for r in frame[frame["score"] != "share"].to_dict("records")
    ]
    columns = ["score", "value", "95% interval", "meaning"]
    alt = "Effect by subgroup, faithfulness by ablation and minimality by component. The numbers follow in a table."
    why = report.ablations[0].undefined
    about = f"{report.direction.capitalize()} {report.metric}; ablation: {', '.join(a.name for a in report.ablations)}."
    caption = f"Means over {report.effect.n} distinct prompts with 95% intervals. {about}"
    caption += f" Ratios are {why}." if why else ""
    return section(
        "evaluation",
        "How good, how sure",
        [tag("p", f"Verdict: {report.verdict}.")] if report.ablations[0].chance is not None else None,
        _notes(report.notes),
        tag("figure", to_svg(figure, "figure-evaluation", alt), tag("figcaption", caption)),
        table(columns, rows[:MOST_ROWS], caption="Scores of the evaluation", sort=True, hidden=True),
        csv_link(frame, "evaluation.csv"),
    )


def examples_section(report: CircuitReport) -> Markup:
    """Every prompt with what the circuit does to it, the least explained first."""
    frame = report.per_example().sort_values("share", kind="stable")
    rows = [
        [r["pair"], r["label"], r["prompt"], r["effect"], r["full_effect"], _known(r["share"])]
        for r in frame.head(MOST_ROWS).to_dict("records")
    ]
    columns = ["pair", "subgroup", "prompt", "effect", "full effect", "share"]
    intro = "Prompts in the order of how much of their full effect the circuit has: what it does not explain is on top."
    made = table(columns, rows, caption="Effect on each prompt", sort=True, hidden=True)
    return section("explained", "What is not explained", tag("p", intro), made, csv_link(frame, "explained.csv"))


def stability_section(found: Stability) -> Markup:
    """Which components come back when the prompts are drawn again."""
    with inked():
        figure = plot_stability(found)
    frame = found.to_dataframe()
    rows = [
        [
            r["component"],
            Percent(r["frequency"]),
            between(r["low"], r["high"]),
            "yes" if r["stable"] else "no",
        ]
        for r in frame.head(MOST_ROWS).to_dict("records")
    ]
    text = (
        f"{len(found.sets)} searches by {found.solver} on prompts drawn anew with replacement, budget {found.budget}. "
        f"Two of them share {found.jaccard:.0%} of their components on average (Jaccard index; random sets "
        f"{found.chance_jaccard:.2g})."
    )
    alt = "Share of the searches that chose each component. The numbers follow in a table."
    columns = ["component", "frequency", "95% interval", f"in {found.threshold:.0%} or more"]
    return section(
        "stability",
        "Stability",
        tag("p", text),
        _notes(found.notes),
        tag("figure", to_svg(figure, "figure-stability", alt)),
        table(columns, rows, caption="How often each component was chosen", sort=True, hidden=True),
        csv_link(frame, "stability.csv"),
    )


def side_effects_section(found: SideEffects) -> Markup:
    """Other behaviours before and after the circuit is switched off."""
    with inked():
        figure = plot_side_effects(found)
    frame = found.to_dataframe()
    rows = [
        [
            r["behaviour"],
            f"{r['metric']} ({r['unit']})",
            r["before"],
            r["after"],
            r["change"],
            between(r["change_low"], r["change_high"]),
            r["kl"],
            r["prompts"],
        ]
        for r in frame.to_dict("records")
    ]
    columns = ["behaviour", "metric", "before", "after", "change", "95% interval", "KL (nats)", "prompts"]
    moved = [e.name for e in found.effects if e.clear]
    text = (
        f"Every component of the circuit is replaced by {'its mean' if found.how == 'mean' else 'zero'} at every "
        f"position, in its own task and in others. Changed for sure (over {FEW} distinct prompts or more, the interval "
        f"of the change leaves out 0): {', '.join(moved) or 'none'}."
    )
    alt = "KL of the next token per behaviour, and each metric before and after. The numbers follow in a table."
    caption = "Means over prompts with 95% intervals. KL counts every change of the next token's distribution."
    return section(
        "side-effects",
        "What else it changes",
        tag("p", text),
        _notes(found.notes),
        tag("figure", to_svg(figure, "figure-side-effects", alt), tag("figcaption", caption)),
        table(columns, rows, caption="Other behaviours before and after", sort=True, hidden=True),
        csv_link(frame, "side_effects.csv"),
    )


def _notes(notes: tuple[str, ...]) -> Markup | None:
    return tag("div", tag("ul", [tag("li", note) for note in notes]), class_="note") if notes else None


def _named(row: dict[Any, Any], several: bool) -> str:
    of = (f": {row['of']}" if row["of"] else "") + (f", {row['ablation']}" if several else "")
    return f"{row['score']}{of}" + (f" ({row['n']} prompts)" if row["score"] == "subgroup effect" else "")


def _known(value: Any) -> float | None:
    return None if value is None or value != value else float(value)
