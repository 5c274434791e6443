"""Circuitsvis views in a notebook."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from html import escape
from pathlib import Path
from typing import Any

from tl_multitrace.circuit import Circuit
from tl_multitrace.interventions import intervention_by_name
from tl_multitrace.metrics import AnswerLogProb
from tl_multitrace.prompts import PromptPairs
from tl_multitrace.records.record import draws
from tl_multitrace.records.write import write_text
from tl_multitrace.render.capture import make_views
from tl_multitrace.render.embed import asset, bundle, page
from tl_multitrace.render.html import tag
from tl_multitrace.render.sections import views_section
from tl_multitrace.render.views import Views
from tl_multitrace.tracer import Tracer


@dataclass(frozen=True)
class Shown:
    """Views that a notebook shows as the value of a cell.

    Attributes:
        views: the data.
        title: heading.

    Examples:
        >>> circuit.show(examples=1).save("circuit.html").name
        'circuit.html'
    """

    views: Views
    title: str = "Circuit"

    @property
    def html(self) -> str:
        """A self-contained page: nothing is fetched, also when the notebook is read online."""
        body = tag("main", tag("h1", self.title), views_section(self.views), class_="notebook")
        return page(self.title, body, scripts=(bundle(), asset("report.js")))

    def save(self, path: str | Path, *, overwrite: bool = False) -> Path:
        """Write the page; raises FileExistsError unless ``overwrite``."""
        return write_text(Path(path), self.html, overwrite=overwrite)

    def _repr_html_(self) -> str:
        # a frame of its own: the notebook's styles, and other views' ids, stay out of it
        height = 420 + 620 * bool(self.views.heads) + 330 * bool(self.views.neurons)
        return (
            f'<iframe srcdoc="{escape(self.html)}" sandbox="allow-scripts" title="{escape(self.title)}" '
            f'style="width:100%;height:{height}px;border:1px solid #8888;resize:vertical"></iframe>'
        )

    def __repr__(self) -> str:
        shown = [*self.views.heads, *self.views.neurons]
        return f"Shown({self.title}: {', '.join(shown)}; {len(self.views.examples)} prompts; .save(path) writes it)"


@draws(Circuit, "show")
def show(
    circuit: Circuit,
    model: Any = None,
    pairs: PromptPairs | None = None,
    *,
    examples: int | Sequence[int] = 3,
    heads: int = 8,
    neurons: int = 8,
) -> Shown:
    """Circuitsvis views: attention, activations and answer probability in the base, source and patched runs.

    Args:
        circuit: what to show.
        model: the model it was found on, or the :class:`Tracer` it was found with; default: the circuit's own tracer,
            where it came out of a search in this session.
        pairs: prompts to show it on; not needed with a tracer.
        examples: pair numbers, or how many, evenly spaced from the largest effect to the smallest.
        heads: attention heads at most, largest marginal effects first.
        neurons: neurons or MLP dimensions at most.

    Returns:
        An object that a notebook displays; ``.save(path)`` writes it as a page.

    Raises:
        ValueError: no model, or no prompts; a circuit of another model.

    Examples:
        >>> from tl_multitrace.render import show
        >>> shown = show(circuit, examples=1)
        >>> len(shown.views.examples), shown.views.heads
        (1, ['L0H3', 'L0H1'])
    """
    title = f"Circuit of {len(circuit)} of {circuit.n_groups} components"
    tracer = model if isinstance(model, Tracer) else getattr(circuit, "tracer", None) if model is None else None
    if tracer is None:
        circuit, tracer = _own_tracer(circuit, model, pairs)
    elif pairs is not None:
        tracer = tracer.on(pairs)
    views = make_views(circuit, tracer, examples=examples, heads=heads, neurons=neurons)
    return Shown(views, f"{title} in {tracer.view.name}")


def _own_tracer(circuit: Circuit, model: Any, pairs: PromptPairs | None) -> tuple[Circuit, Tracer]:
    """A tracer over the chosen groups alone, with the intervention that the circuit was found with."""
    if model is None or pairs is None:
        missing = "model and prompts" if model is None else "prompts"
        raise ValueError(f"the views run the model, but this circuit has no {missing}: circuit.show(model, pairs).")
    circuit.check_model(model)
    known = dict(circuit.provenance.get("intervention") or {"name": "interchange"})
    intervention = intervention_by_name(str(known.pop("name")), **{k: v for k, v in known.items() if v is not None})
    alone = replace(circuit, indices=tuple(range(len(circuit))), n_groups=len(circuit))
    return alone, Tracer(model, pairs, circuit.groups, AnswerLogProb(), intervention)
