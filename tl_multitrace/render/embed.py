"""Circuitsvis on a page of our own: its bundle once, a data block and a call per view, no request to any host."""

from __future__ import annotations

import base64
import hashlib
from functools import cache
from importlib.resources import files
from typing import Any

from tl_multitrace.render.html import Markup, json_block, tag
from tl_multitrace.render.views import ExampleView, RunName, RunView, Views

RUN_TITLES: dict[RunName, str] = {"base": "Base run", "source": "Source run", "patched": "Patched run"}


@cache
def bundle() -> str:
    """The JavaScript of the installed circuitsvis, safe to stand in a script element.

    Raises:
        RuntimeError: the installed circuitsvis has no local bundle.
    """
    place = files("circuitsvis").joinpath("dist", "cdn", "iife.js")
    if not place.is_file():
        raise RuntimeError("circuitsvis has no local bundle (dist/cdn/iife.js): pip install --upgrade circuitsvis.")
    source = place.read_text(encoding="utf-8").replace("\r\n", "\n")
    code = "\n".join(line for line in source.split("\n") if not line.startswith("//# sourceMappingURL"))
    return code.replace("</", r"<\/").replace("<!--", r"<\!--")


@cache
def asset(name: str) -> str:
    """A text file of this package's ``assets`` folder."""
    return files(__package__).joinpath("assets", name).read_text(encoding="utf-8").replace("\r\n", "\n")


def page(title: str, body: Markup, *, scripts: tuple[str, ...] = ()) -> str:
    """A whole HTML document that fetches nothing and runs no script but these.

    The content security policy allows scripts by their digest: code that gets into the page from a prompt would not
    run even if it were not escaped.

    Args:
        title: of the document.
        body: its content.
        scripts: JavaScript to run, in order.
    """
    digests = " ".join(f"'sha256-{_digest(code)}'" for code in scripts) or "'none'"
    policy = (
        f"default-src 'none'; script-src {digests}; style-src 'unsafe-inline'; img-src data:; "
        "base-uri 'none'; form-action 'none'"
    )
    head = [
        tag("meta", charset="utf-8"),
        tag("meta", http_equiv="Content-Security-Policy", content=policy),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        tag("meta", name="color-scheme", content="light dark"),
        tag("title", title),
        tag("style", Markup(asset("report.css"))),
    ]
    run = [tag("script", Markup(code)) for code in scripts]
    return "<!DOCTYPE html>\n" + tag("html", tag("head", head), tag("body", body, run), lang="en") + "\n"


def _digest(code: str) -> str:
    return base64.b64encode(hashlib.sha256(code.encode("utf-8")).digest()).decode("ascii")


# ---------------------------------------------------------------------- views


WRITES_MARKUP = ("ColoredTokens", "ColoredTokensMulti", "TextNeuronActivations")
"""Views that put each token into the page as markup: a token ``<s>`` would be an element, and not be seen."""

INERT = str.maketrans({"<": "<\u2060", "&": "&\u2060"})
"""An unseen joiner behind what opens a tag or an entity: both then stay text, in markup and out of it alike."""


def inert(tokens: Any) -> Any:
    """Tokens, in lists of any depth, that are text also where they are taken for markup."""
    return tokens.translate(INERT) if isinstance(tokens, str) else [inert(token) for token in tokens]


def view(name: str, props: dict[str, Any], *, key: str, title: str) -> Markup:
    """One circuitsvis view: where it is drawn, and its data.

    Args:
        name: of the circuitsvis element, such as ``"AttentionHeads"``.
        props: its properties, as JSON.
        key: id of the place, distinct on the page.
        title: what it shows, for screen readers.
    """
    props = {**props, "tokens": inert(props["tokens"])} if name in WRITES_MARKUP else props
    waiting = tag("noscript", tag("p", "This view needs scripts; the tables beside it say the same in numbers."))
    place = tag("div", id=key, class_=f"view {name}", role="group", aria_label=title)
    return Markup(place + waiting + json_block(props, data_view=name, data_for=key))


def attention_views(views: Views, example: ExampleView, key: str) -> Markup | None:
    """The selected heads' patterns in each run, side by side."""
    made = []
    for run, data in example.runs.items():
        if data.attention:
            props = {
                "attention": data.attention,
                "tokens": data.words,
                "attentionHeadNames": views.heads,
                "minValue": -1,
                "maxValue": 1,
                "maskUpperTri": True,
            }
            title = f"{RUN_TITLES[run]}, pair {example.pair}: attention of {', '.join(views.heads)}"
            shown = view("AttentionHeads", props, key=f"{key}-{run}", title=title)
            made.append(tag("figure", tag("figcaption", RUN_TITLES[run]), shown))
    return tag("div", made, class_="runs") if made else None


def answer_view(example: ExampleView, key: str) -> Markup | None:
    """The prompt's tokens, coloured by the probability that an answer comes next."""
    base, patched = example.runs["base"], example.runs["patched"]
    if not base.answers or len(base.answers) != len(patched.answers):
        return None
    values = [_answer_row(b, p) for b, p in zip(base.answers, patched.answers, strict=True)]
    labels = [f"P({a.strip()!r}) {what}" for a in example.answers for what in ("patched", "base", "change")]
    # circuitsvis keeps the first value's bounds for all of them: give it the same for each
    bounds = {"positiveBounds": [1] * len(labels), "negativeBounds": [-1] * len(labels)}
    props = {"tokens": _visible(base.words), "values": values, "labels": labels, **bounds}
    title = f"Tokens of pair {example.pair}, coloured by the probability of the answer after each"
    return tag(
        "figure",
        tag("figcaption", "Probability that an answer comes next, after each token (hover a token for all values)"),
        view("ColoredTokensMulti", props, key=f"{key}-answers", title=title),
    )


def _answer_row(base: list[float], patched: list[float]) -> list[float]:
    return [float(f"{v:.4g}") for b, p in zip(base, patched, strict=True) for v in (p, b, p - b)]


def neuron_view(views: Views, key: str) -> Markup | None:
    """Activations of the selected neurons over the tokens of every example and run."""
    rows = [(e, name, run) for e in views.examples for name, run in e.runs.items() if run.neurons]
    if not rows:
        return None
    tokens = [[f"{name} {e.pair}:", *_visible(run.words)] for e, name, run in rows]
    props = {
        "tokens": tokens,
        "activations": [_stacked(run) for _, _, run in rows],
        "firstDimensionName": "Site",
        "firstDimensionLabels": ["activation"],
        "secondDimensionName": "Neuron",
        "secondDimensionLabels": views.neurons,
    }
    caption = "Activation of a selected neuron over the tokens; each row starts with its run and pair"
    shown = view("TextNeuronActivations", props, key=f"{key}-neurons", title=caption)
    return tag("figure", tag("figcaption", caption), shown)


def _stacked(run: RunView) -> list[list[list[float]]]:
    """``[tokens][1][neurons]``, with a row of zeros for the token that names the run."""
    return [[[0.0] * len(run.neurons[0])], *[[row] for row in run.neurons]]


def _visible(words: list[str]) -> list[str]:
    return [w if w.strip() else repr(w)[1:-1] for w in words]
