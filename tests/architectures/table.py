"""Write the page that says what works on which architecture: ``python tests/architectures/table.py [NAME ...]``.

The rows come out of the sweep itself; with names, only those are measured anew.
"""

from __future__ import annotations

import sys
import warnings
from pathlib import Path

HERE = Path(__file__).resolve()
sys.path[:0] = [str(HERE.parent), str(HERE.parents[1]), str(HERE.parents[2])]

from configs import ARCHITECTURES, BROKEN, Architecture  # noqa: E402
from sweep import Row, Sweep  # noqa: E402

PAGE = HERE.parents[2] / "tutorials" / "pages" / "models.md"

HEAD = """# Models

Every text decoder that TransformerLens 4.3 knows and transformers can build, and further configurations of some, each
as a tiny model with random weights. The suite compares every number with a plain loop: one unpadded prompt at a time,
hooks of TransformerLens' own `run_with_hooks`, whole logits; masks of none, all, some in part and the last layer alone,
restarts, gradients, a search, its circuit as hooks, `evaluate`, `information_flow` and `causal_trace`. What a model has
no hook for is refused with an error that names what to use instead.

*Works* lists kinds of components, with an asterisk where some layers alone have them (`heads(model)` takes those);
*flow* and *trace* are `information_flow` and `causal_trace`. *Largest error* is a share of the largest logit difference
(or of 1), with weights in float64 wherever transformers' code runs in it; most models take norms and softmax in
float32.

| architecture | works | refused | largest error |
|---|---|---|---|
"""

FOOT = """
This page is written by `python tests/architectures/table.py`.
"""


def line(name: str, row: Row) -> str:
    """One row of the table."""
    return f"| {name} | {', '.join(row.works) or '–'} | {refusals(row)} | {row.bound} |"


def refusals(row: Row) -> str:
    """What is refused, by reason."""
    reasons = dict.fromkeys(row.refused.values())
    return "; ".join(f"{', '.join(k for k, r in row.refused.items() if r == reason)}: {reason}" for reason in reasons)


def lines_of(page: str) -> dict[str, str]:
    """The rows of a page by architecture."""
    rows = [row for row in page.splitlines() if row.startswith("| ") and not row.startswith("| architecture")]
    return {row.split("|")[1].strip(): row for row in rows}


def measured(name: str, architecture: Architecture) -> str:
    """A row from a run of the sweep."""
    if name in BROKEN:
        return f"| {name} | – | everything: {BROKEN[name]} | – |"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return line(name, Sweep(ready(architecture), architecture.tolerance).run())


def ready(architecture: Architecture) -> object:
    """A model that has run once: a bridge adds hooks of its own in its first runs."""
    import torch

    model = architecture.build()
    with torch.no_grad():
        model.run_with_cache(torch.tensor([[3, 4]]), names_filter="hook_embed")
        model.run_with_hooks(torch.tensor([[3, 4]]), fwd_hooks=[("embed.hook_out", lambda act, hook: None)])
    return model


def main(names: list[str]) -> None:
    """Write the page."""
    kept = lines_of(PAGE.read_text()) if PAGE.exists() and names else {}
    for name, architecture in ARCHITECTURES.items():
        if not names or name in names:
            try:
                kept[name] = measured(name, architecture)
            except Exception as error:  # a row that cannot be written yet must not cost the others
                sys.stderr.write(f"{name}: {type(error).__name__}: {error}\n")
                kept.pop(name, None)
    PAGE.write_text(HEAD + "\n".join(kept[name] for name in ARCHITECTURES if name in kept) + "\n" + FOOT)


if __name__ == "__main__":
    main(sys.argv[1:])
