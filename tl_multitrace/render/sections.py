"""The parts of the report, each readable without scripts."""

from __future__ import annotations

import base64
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from tl_multitrace.circuit import Circuit
from tl_multitrace.records.chance import Verdict
from tl_multitrace.records.stats import FEW, Score
from tl_multitrace.render.curves import solver_name, unit_of
from tl_multitrace.render.embed import RUN_TITLES, answer_view, attention_views, neuron_view
from tl_multitrace.render.html import Markup, Percent, between, join, number, table, tag
from tl_multitrace.render.views import ExampleView, Views

if TYPE_CHECKING:
    import pandas as pd

    from tl_multitrace.runs.run import Run

MOST_ROWS = 400
"""Rows of the per-prompt table; the downloadable table has all."""

PROMPT_COLUMNS = {
    "pair": "pair",
    "split": "split",
    "label": "subgroup",
    "base": "base prompt",
    "source": "source prompt",
    "answers": "answer",
    "wrong_answers": "wrong answer",
    "metric": "metric before",
    "effect": "effect",
}
"""Columns of the per-prompt table; one that holds nothing (no subgroups, a metric that starts at 0) is left out."""

MOST_CSV = 600_000
"""Bytes of a table that is put into the page for download."""


def section(key: str, title: str, *content: Any) -> Markup:
    """A part of the page with a heading that the table of contents names."""
    return tag("section", tag("h2", title, id=f"{key}-title"), content, id=key, aria_labelledby=f"{key}-title")


# ---------------------------------------------------------------------- what was found


def sentence(circuit: Circuit, verdict: Verdict | None = None) -> str:
    """What was found, in one sentence, with what unseen prompts and chance say of it.

    Args:
        circuit: what was found.
        verdict: about chance; default the circuit's own.
    """
    facts = circuit.provenance
    unit, score = unit_of(circuit), circuit.score
    effect = _with_interval(score, unit) if score else f"{number(circuit.effect)} ({unit})"
    count = dict(facts.get("prompts") or {}).get("n") or (score.n if score else "the")
    model = dict(facts.get("model") or {}).get("name", "the model")
    text = (
        f"Patching {len(circuit)} of {circuit.n_groups} components of {model} changes "
        f"{facts.get('metric', 'the metric')} by {effect} on {count} prompts"
    )
    return text + _share_clause(circuit) + _held_out_clause(circuit) + f"; {verdict or circuit.verdict}."


def _with_interval(score: Score, unit: str = "", note: str = "") -> str:
    few = f", from {score.n} distinct prompts only" if score.n < FEW else ""
    inside = f"95% interval {between(score.low, score.high)}{note}{few}"
    inside = "no interval: one distinct prompt" if score.low is None else inside
    return f"{number(score.mean)} ({unit}; {inside})" if unit else f"{number(score.mean)} ({inside})"


def _share_clause(circuit: Circuit) -> str:
    if circuit.share is None:
        return f" (its share of patching all of them is {circuit.no_share})" if circuit.no_share else ""
    if 0 <= circuit.share <= 1.5:
        return f", {circuit.share:.0%} of what patching all of them does"
    return f" (patching all of them changes it by {number(circuit.full_effect)})"


def _held_out_clause(circuit: Circuit) -> str:
    if circuit.held_out is None:
        return "; it was not tested on held-out prompts"
    held = circuit.held_out
    doubt = "" if held.clear or held.low is None else ", which includes 0"
    return f"; on {held.n} held-out prompts the change is {_with_interval(held, note=doubt)}"


def scores_section(run: Run) -> Markup:
    """All scores of the circuit with their intervals."""
    c, cost = run.circuit, dict(run.circuit.provenance.get("cost") or {})
    rows = [
        _score_row("effect", c.score, "on the prompts of the search", c.effect),
        _score_row("held-out effect", c.held_out, "on prompts that the search never saw"),
        _chance_row(c),
        _score_row("whole mask", c.full_score, f"all {c.n_groups} components patched", c.full_effect),
        ["share", _percent(c.share), None, None, None, c.no_share or "effect over that of the whole mask"],
    ]
    if c.score is not None and c.score.log is not None:
        rows.insert(1, ["log scale", c.score.log, None, None, c.score.n, "mean change of the log-odds, in nats"])
    columns = ["score", "mean", "95% interval", "median", "prompts", "meaning"]
    facts = [
        ("choice", c.certificate),
        ("solver", solver_name(run.path)),
        ("budget", str(c.provenance.get("budget", len(c)))),
        ("cost", f"{cost.get('equivalents', 0):.0f} forward equivalents, {cost.get('seconds', 0):.1f} s"),
    ]
    return section(
        "scores",
        "Scores",
        tag("p", f"An effect is the metric with the circuit patched minus the metric without. Unit: {unit_of(c)}."),
        table(columns, rows, caption="Scores of the circuit", hidden=True),
        tag("p", f"Verdict: {run.verdict}."),
        tag("dl", [(tag("dt", k), tag("dd", v)) for k, v in facts]),
        [tag("p", f"Note of the solver: {note}") for note in run.path.notes],
    )


def _score_row(name: str, score: Score | None, meaning: str, mean: float | None = None) -> list[Any]:
    if score is None:
        return [name, mean, None, None, None, meaning if mean is not None else f"not measured: {meaning}"]
    return [name, score.mean, between(score.low, score.high), score.median, score.n, meaning]


def _chance_row(circuit: Circuit) -> list[Any]:
    chance, where = circuit.chance, circuit.provenance.get("chance_on", "the prompts of the search")
    meaning = f"random sets of the same size and kinds, on {where}; interval: 95% of the sets, and their mean"
    row = _score_row("chance", chance, meaning if chance is None else f"{chance.n} {meaning}")
    return [*row[:4], None, row[5]]


def _percent(value: float | None) -> Percent | None:
    return None if value is None else Percent(value)


# ---------------------------------------------------------------------- tables


def components_section(circuit: Circuit) -> Markup:
    """Every chosen component with its marginal effect."""
    frame = circuit.to_dataframe()
    rows = [
        [r.component, r.kind, r.layer, _whole(r.index_), _at(r.position), _known(r.marginal), _percent(_known(r.share))]
        for r in frame.rename(columns={"index": "index_"}).itertuples()
    ]
    columns = ["component", "kind", "layer", "index", "positions", f"marginal effect ({unit_of(circuit)})", "share"]
    note = (
        "The marginal effect is what the circuit's effect loses without the component. The shares need not sum to "
        "100%: components that back each other up lose little one by one, those that work only jointly count twice."
    )
    caption = f"The {len(circuit)} chosen components"
    return section(
        "components",
        "Components",
        tag("p", note),
        table(columns, rows, caption=caption, sort=True, hidden=True),
        csv_link(frame, "components.csv"),
    )


def _known(value: Any) -> float | None:
    return None if value is None or value != value else float(value)


def _whole(value: Any) -> int | None:
    return None if value is None or value != value else int(value)


def _at(position: Any) -> str:
    return "all" if position is None or position != position else str(position)


def prompts_section(effects: pd.DataFrame, unit: str) -> Markup:
    """What the circuit does to every prompt, the largest effects first."""
    frame = effects.sort_values("effect", ascending=False, kind="stable")
    shown = frame if len(frame) <= MOST_ROWS else frame.iloc[[*range(MOST_ROWS // 2), *range(-MOST_ROWS // 2, 0)]]
    told = [c for c in PROMPT_COLUMNS if c in ("pair", "effect") or bool(shown[c].astype(bool).any())]
    rows = [[r[c] for c in told] for r in shown.to_dict("records")]
    columns = [PROMPT_COLUMNS[c] for c in told[:-1]] + [f"effect ({unit})"]
    left = f" The {len(shown)} largest and smallest of {len(frame)} are shown." if len(shown) < len(frame) else ""
    return section(
        "prompts",
        "Prompts",
        tag("p", "The effect of patching the circuit on each prompt, largest first.", left),
        table(columns, rows, caption="Effect on each prompt", sort=True, hidden=True),
        csv_link(effects, "effects.csv"),
    )


def budgets_table(path: Any, chance: Mapping[int, Score]) -> Markup:
    """The numbers of the figure: one row per budget."""
    rows = []
    for c in path.choices:
        random = chance.get(len(c.members))
        names = " ".join(path.groups.components[i].label for i in c.members[:40])
        held = None if c.held_out is None else c.held_out.mean
        interval = between(c.score.low, c.score.high)
        more = " ..." if len(c.members) > 40 else ""
        rows.append([c.size, c.score.mean, interval, held, random and random.mean, names + more])
    columns = ["budget", "effect", "95% interval", "held out", "random sets", "components"]
    made = table(columns, rows, caption="Effect by budget", sort=True, hidden=True)
    link = csv_link(path.to_dataframe(), "budgets.csv")
    return tag("details", tag("summary", "The numbers, and the set for every budget"), made, link)


def goals_section(path: Any) -> Markup | None:
    """Every goal and constraint of the search, by budget; None where it had one metric alone."""
    frame = path.goals()
    if frame.empty:
        return None
    rows = [
        [
            r.goal,
            r.budget,
            r.change,
            r.unit,
            between(r.low, r.high),
            r.held_out,
            r.bound.replace("<=", "≤").replace(">=", "≥") or None,
            _kept(r.kept, r.kept_held_out),
        ]
        for r in frame.itertuples()
    ]
    columns = ["goal", "budget", "change", "unit", "95% interval", "held out", "bound", "kept"]
    note = (
        "Change of every number against the unpatched model, as a mean over its prompts. A bound is held on the "
        "prompts of the search; the last column says whether the held-out prompts keep it too. Random sets, wherever "
        "they are shown, are those that keep the bounds."
    )
    largest = [row for row in rows if row[1] == frame["budget"].max()]
    made = table(columns, largest, caption="Goals and bounds at the largest budget")
    every = table(columns, rows, caption="Goals and bounds by budget", sort=True, hidden=True)
    details = tag("details", tag("summary", "The numbers for every budget"), every, csv_link(frame, "goals.csv"))
    return section("goals", "What was pushed, and what was kept", tag("p", note), made, details)


def _kept(own: Any, held: Any) -> str | None:
    if own is None:
        return None
    unseen = "" if held is None or held != held else (", also held out" if held else ", not held out")
    return ("yes" if own else "no") + unseen


def flow_table(graph: Any) -> Markup:
    """The edges of a flow graph, strongest first."""
    import pandas as pd

    edges = sorted(graph.edges(data=True), key=lambda edge: -abs(edge[2]["effect"]))
    columns = ("effect", "low", "high", "share", "n")
    frame = pd.DataFrame(
        [{"from": a, "to": b, "input": d.get("input", "")} | {c: d.get(c) for c in columns} for a, b, d in edges],
        columns=["from", "to", "input", *columns],
    )
    rows = [
        [
            f"{a} → {b}",
            d.get("input", ""),
            d["effect"],
            between(d.get("low"), d.get("high")),
            _percent(d.get("share")),
        ]
        for a, b, d in edges[:MOST_ROWS]
    ]
    heads = ["edge", "input", f"effect ({graph.graph.get('unit', 'effect')})", "95% interval", "share"]
    made = table(heads, rows, caption="Direct effects", sort=True, hidden=True)
    return tag("details", tag("summary", "The numbers"), made, csv_link(frame, "flow.csv"))


def csv_link(frame: pd.DataFrame, name: str) -> Markup | None:
    """A link that saves a table as CSV, from the page itself; none where it is too large."""
    content = frame.to_csv(index=False, lineterminator="\n").encode("utf-8")
    if len(content) > MOST_CSV:
        return tag("p", f"The whole table is in {name}, beside this report.")
    data = base64.b64encode(content).decode("ascii")
    link = tag("a", f"Save as {name}", href=f"data:text/csv;charset=utf-8;base64,{data}", download=name)
    return tag("p", link, class_="save")


def provenance_section(run: Run) -> Markup:
    """Where the result comes from: model, prompts, metric, solver, versions."""
    facts = {k: v for k, v in run.circuit.provenance.items() if k != "budget"}
    rows = [[name, value] for name, value in _flat({**facts, **run.facts})]
    made = table(["fact", "value"], rows, caption="Where the result comes from", hidden=True)
    return section("provenance", "Provenance", made)


def _flat(facts: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    for key, value in facts.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{key}: ")
        elif isinstance(value, float):
            yield name, number(value, ".4g")
        elif value is not None:
            yield name, str(value)


# ---------------------------------------------------------------------- views


def views_section(views: Views) -> Markup:
    """Circuitsvis views of the examples, each with its numbers in a table."""
    parts = [_example(views, e, f"view-{i}", i == 0) for i, e in enumerate(views.examples)]
    neurons = neuron_view(views, "view")
    notes = [tag("li", note) for note in views.left_out]
    left = tag("div", tag("p", "Not shown:"), tag("ul", notes), class_="note") if notes else None
    intro = (
        "The same prompts in three runs: untouched, the source that activations come from, and the base prompt with "
        "the circuit patched. Hover or click a head to enlarge it; rows attend to columns."
    )
    return section("views", "Inside the model", tag("p", intro), parts, neurons, left)


def _example(views: Views, example: ExampleView, key: str, first: bool) -> Markup:
    label = f" ({example.label})" if example.label else ""
    title = f"Pair {example.pair}{label}: effect {number(example.effect)}"
    body = join([_prompts(example), _numbers(views, example), attention_views(views, example, key)])
    return tag("details", tag("summary", title), body, answer_view(example, key), open=first, class_="example")


def _prompts(example: ExampleView) -> Markup:
    runs = [name for name in ("base", "source") if name in example.runs]
    rows = [(tag("dt", RUN_TITLES[r]), tag("dd", _tokens(example.runs[r].words))) for r in runs]
    return tag("dl", rows)


def _tokens(words: list[str]) -> Markup:
    return join([tag("span", word, class_="token") for word in words])


def _numbers(views: Views, example: ExampleView) -> Markup:
    """What the last position attends to and predicts, in each run."""
    names = list(example.runs)
    columns = ["quantity", *(f"{name} run" for name in names)]
    rows: list[list[Any]] = []
    for k, answer in enumerate(example.answers):
        values = [_read(example, name).answers for name in names]
        kind = "answer" if k < example.n_right else "wrong answer"
        rows.append([f"P({answer.strip()!r}), {kind}", *[number(v[_place(example, v)][k]) for v in values if v]])
    for h, head in enumerate(views.heads):
        rows.append([f"{head} attends to", *[_strongest(example, name, h) for name in names]])
    caption = f"Pair {example.pair}: what the answer's position predicts, and what each head attends to most from there"
    return table(columns, rows, caption=caption)


def _read(example: ExampleView, name: Any) -> Any:
    return example.runs[name]


def _place(example: ExampleView, rows: list[Any]) -> int:
    """The position that predicts the answer: as many tokens before the end in a source prompt of another length."""
    return example.read - len(example.runs["base"].words) + len(rows)


def _strongest(example: ExampleView, name: Any, head: int) -> str:
    run = example.runs[name]
    if not run.attention:
        return "–"
    weights = run.attention[head][_place(example, run.words)]
    best = max(range(len(weights)), key=weights.__getitem__)
    return f"{run.words[best].strip()!r} ({weights[best]:.2f})"
