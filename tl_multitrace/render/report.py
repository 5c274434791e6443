"""The report: one self-contained HTML file about one circuit."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tl_multitrace._version import __version__
from tl_multitrace.records.stats import Score
from tl_multitrace.records.write import write_text
from tl_multitrace.render import sections
from tl_multitrace.render.curves import plot_path, plot_subgroups, solver_name, subgroup_scores, unit_of
from tl_multitrace.render.embed import asset, bundle, page
from tl_multitrace.render.evaluation_page import evaluation_section, side_effects_section, stability_section
from tl_multitrace.render.flow import check_flow, plot_flow
from tl_multitrace.render.html import Markup, between, join, number, table, tag
from tl_multitrace.render.maps import plot_circuit
from tl_multitrace.render.sections import csv_link, section
from tl_multitrace.render.style import inked, to_svg

if TYPE_CHECKING:
    import networkx as nx
    import pandas as pd

    from tl_multitrace.runs.run import Run

MAX_PAGE = 6_000_000
"""Bytes that a page stays below."""


def write_report(run: Run, path: str | Path, overwrite: bool = False, *, flow: nx.MultiDiGraph | None = None) -> Path:
    """Write one self-contained HTML file: what was found, where, how sure that is, and what it does to the prompts.

    The page fetches nothing, runs only its own scripts, follows the reader's light or dark theme, prints, and keeps its
    tables and figures without scripts.

    Args:
        run: what to report; from a search in this session, or ``Run.from_folder(folder)``.
        path: file to write.
        overwrite: replace an existing file.
        flow: direct effects between the components, as :func:`~tl_multitrace.information_flow` gives them; default:
            the run's own, if it has any.

    Returns:
        The file written.

    Raises:
        FileExistsError: the file exists and ``overwrite`` is False.

    Examples:
        >>> from tl_multitrace.render import Run, write_report
        >>> path = mt.select(tracer, [1, 2], mt.Greedy())
        >>> run = Run(path, path[2], tracer=tracer)
        >>> write_report(run, "report.html").name
        'report.html'
    """
    place = Path(path)
    if place.exists() and not overwrite:  # before anything is measured
        raise FileExistsError(f"{place} exists. Choose another name, or pass overwrite=True to replace it.")
    run = run if flow is None else replace(run, flow=check_flow(flow))
    return write_text(place, report_html(run.measured()), overwrite=overwrite)


def report_html(run: Run) -> str:
    """The page of a measured run, as text."""
    parts = [
        sections.scores_section(run),
        _map_section(run),
        _path_section(run),
        sections.goals_section(run.path),
        _subgroups_section(run),
        evaluation_section(run.evaluation) if run.evaluation is not None else None,
        stability_section(run.stability) if run.stability is not None else None,
        side_effects_section(run.side_effects) if run.side_effects is not None else None,
        sections.components_section(run.circuit),
        _flow_section(run),
        sections.views_section(run.views) if run.views is not None and run.views.examples else None,
        sections.prompts_section(run.effects, unit_of(run.circuit)) if run.effects is not None else None,
        sections.provenance_section(run),
    ]
    shows_views = run.views is not None and bool(run.views.examples)
    scripts = (bundle(), asset("report.js")) if shows_views else (asset("report.js"),)
    main = tag("main", tag("p", sections.sentence(run.circuit, run.verdict), class_="lead"), parts, id="content")
    body = join([_header(run), main, _footer()])
    made = page(run.name, body, scripts=scripts)
    if len(made) > MAX_PAGE:
        raise ValueError(f"the report would have {len(made)} bytes, above {MAX_PAGE}: show fewer prompts or heads.")
    return made


CONTENTS = {
    "scores": "Scores",
    "map": "Where",
    "budget": "Budgets",
    "goals": "Goals",
    "subgroups": "Subgroups",
    "evaluation": "How sure",
    "stability": "Stability",
    "side-effects": "What else",
    "components": "Components",
    "flow": "Flow",
    "views": "Inside the model",
    "prompts": "Prompts",
    "provenance": "Provenance",
}


def _header(run: Run) -> Markup:
    absent = {
        "goals": not any(choice.goals for choice in run.path.choices),
        "subgroups": not run.subgroups(),
        "flow": run.flow is None,
        "evaluation": run.evaluation is None,
        "stability": run.stability is None,
        "side-effects": run.side_effects is None,
        "views": run.views is None or not run.views.examples,
        "prompts": run.effects is None,
    }
    links = [tag("a", name, href=f"#{key}") for key, name in CONTENTS.items() if not absent.get(key)]
    skip = tag("a", "Skip to the content", href="#content", class_="skip")
    return join([skip, tag("header", tag("h1", run.name), tag("nav", links, aria_label="Contents"))])


def _footer() -> Markup:
    return tag("footer", tag("p", f"Made with tl_multitrace {__version__}. Views by circuitsvis."))


# ---------------------------------------------------------------------- figures


def _figure(name: str, figure: Any, alt: str, caption: str) -> Markup:
    return tag("figure", to_svg(figure, f"figure-{name}", alt), tag("figcaption", caption))


def _map_section(run: Run) -> Markup:
    with inked():
        figure = plot_circuit(run.circuit)
    alt = f"Map of layers and heads; chosen: {', '.join(run.circuit.labels[:60])}"
    caption = (
        "The chosen components in the model. Blue: the effect is lost without it; red: the effect grows without it. "
        "×2 and more: that many components share a cell."
    )
    return section("map", "Where the circuit is", _figure("map", figure, alt, caption))


def _path_section(run: Run) -> Markup:
    path = run.path_with_chance()
    with inked():
        figure = plot_path(path, *run.others)
    last = path.choices[-1]
    alt = f"Effect against budget; {number(last.score.mean)} at budget {last.size}. The numbers follow in a table."
    caption = (
        f"Best set that {solver_name(path)} saw within each budget, and random sets, on the prompts of the search. "
        "Band and bars: 95% intervals over prompts; for random sets, where 95% of them are."
    )
    numbers = sections.budgets_table(path, run.chance or {})
    return section("budget", "How many components it takes", _figure("budget", figure, alt, caption), numbers)


def _subgroups_section(run: Run) -> Markup | None:
    parts = run.subgroups()
    if not parts:
        return None
    (effects, labels), held = parts["search"], parts.get("held out")
    with inked():
        figure = plot_subgroups(effects, labels, held_out=held, unit=unit_of(run.circuit))
    found = [
        (group, split, score)
        for split, (values, names) in parts.items()
        for group, score in subgroup_scores(values, names).items()
    ]
    rows = [[group, split, s.mean, between(s.low, s.high), s.median, s.n] for group, split, s in found]
    columns = ["subgroup", "split", "effect", "95% interval", "median", "prompts"]
    alt = "Mean effect per subgroup with its interval. The numbers follow in a table."
    made = _figure("subgroups", figure, alt, "Mean effect per subgroup, with 95% intervals over prompts.")
    numbers = table(columns, rows, caption="Effect per subgroup", sort=True, hidden=True)
    return section("subgroups", "Subgroups", made, numbers, csv_link(_subgroups_frame(found), "subgroups.csv"))


def _subgroups_frame(found: list[tuple[str, str, Score]]) -> pd.DataFrame:
    import pandas as pd

    columns = ["subgroup", "split", "effect", "low", "high", "median", "prompts"]
    return pd.DataFrame([(g, split, s.mean, s.low, s.high, s.median, s.n) for g, split, s in found], columns=columns)


def _flow_section(run: Run) -> Markup | None:
    if run.flow is None:
        return None
    with inked():
        figure = plot_flow(run.flow)
    alt = "Direct effects between tokens, components and answer, layer by layer. The numbers follow in a table."
    caption = (
        "Direct effects by path patching: the metric's change when one input of one component, and nothing else, sees "
        "another's source value. Line width: size; letters: queries, keys, values. Grey: not of the circuit, there for "
        "what passes through it. What passes through components that are not shown is on no edge."
    )
    facts = f"Measured on {run.flow.graph.get('n')} prompts, in {run.flow.graph.get('unit')}."
    numbers = join([tag("p", facts), sections.flow_table(run.flow)])
    return section("flow", "How the components connect", _figure("flow", figure, alt, caption), numbers)
