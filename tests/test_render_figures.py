"""Every figure shows the numbers it is given."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from matplotlib.colors import to_rgba
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from render_cases import model, prompts, run, tracer_of

import tl_multitrace as mt
from tl_multitrace.groups import Component
from tl_multitrace.render import plot_circuit, plot_path, plot_subgroups
from tl_multitrace.render.curves import chance_by_size, subgroup_scores
from tl_multitrace.render.maps import cells
from tl_multitrace.render.style import diverging
from tl_multitrace.solvers.path import chance_score


@pytest.fixture(autouse=True)
def closed_figures() -> Iterator[None]:
    yield
    import matplotlib.pyplot as plt

    plt.close("all")


def boxes(figure: Figure) -> dict[str, Rectangle]:
    found = [p for p in figure.axes[0].patches if isinstance(p, Rectangle) and p.get_gid()]
    return {str(p.get_gid()): p for p in found}


def lines(figure: Figure) -> dict[str, Any]:
    """What the legend names: its label, and the curve it stands for."""
    handles, labels = figure.axes[0].get_legend_handles_labels()
    return {label: h[0] if isinstance(h, tuple) else h for label, h in zip(labels, handles, strict=True)}


def circuit_of(components: list[Component], marginals: list[float], **shape: int) -> mt.Circuit:
    sizes = {(c.kind, c.site): 4096 for c in components}
    groups = mt.HookGroups(tuple(components), tuple((c,) for c in components), sizes)
    facts = {"model": {"name": "x", **shape}, "metric_unit": "nats"}
    indices = tuple(range(len(components)))
    return mt.Circuit(groups, indices, 99999, 1.0, marginals=tuple(marginals), provenance=facts)


def test_importing_the_room_loads_no_drawing_library() -> None:
    heavy = ("matplotlib", "circuitsvis", "transformer_lens")
    code = f"import sys, tl_multitrace.render; print([m for m in {heavy} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


# -------------------------------------------------------------------------------------------- the selection map
def test_a_cell_has_the_colour_of_its_marginal_effect() -> None:
    circuit = run().circuit
    heads = [i for i, c in enumerate(circuit.components) if c.kind == "head"]
    assert heads, "the searched circuit must hold a head for this test to say anything"
    found = boxes(plot_circuit(circuit))
    largest = max(abs(c.marginal or 0.0) for c in cells(circuit))
    for i in heads:
        c = circuit.components[i]
        expected = diverging()((circuit.marginals[i] + largest) / (2 * largest))
        box = found[f"cell-L{c.layer}-{c.index}"]
        assert box.get_facecolor() == pytest.approx(to_rgba(expected))
        assert box.get_xy() == (c.index, c.layer)


def test_zero_is_white_and_signs_differ() -> None:
    parts = [Component("head", 0, i) for i in range(3)]
    found = boxes(plot_circuit(circuit_of(parts, [1.0, -1.0, 0.0], n_layers=2, n_heads=4)))
    red, _, blue = found["cell-L0-0"].get_facecolor()[:3]
    assert blue > red
    red, _, blue = found["cell-L0-1"].get_facecolor()[:3]
    assert red > blue
    assert min(found["cell-L0-2"].get_facecolor()) > 0.95


def test_neurons_of_a_layer_share_a_cell_that_counts_them() -> None:
    parts = [Component("neuron", 1, 5), Component("neuron", 1, 9), Component("mlp", 0), Component("neuron", 2, 5)]
    circuit = circuit_of(parts, [0.5, 0.25, 1.0, -0.5], n_layers=4, n_heads=4)
    by_place = {(c.column, c.layer): (c.count, c.marginal) for c in cells(circuit)}
    assert by_place == {("mlp", 0): (1, 1.0), ("neuron", 1): (2, 0.75), ("neuron", 2): (1, -0.5)}
    texts = [t.get_text() for t in plot_circuit(circuit).axes[0].texts]
    assert "×2" in texts


@pytest.mark.parametrize(("layers", "n_heads"), [(2, 2), (12, 12), (32, 32), (96, 96)])
def test_the_whole_grid_is_there_at_every_size(layers: int, n_heads: int) -> None:
    parts = [Component("head", layers - 1, n_heads - 1), Component("attn", 0), Component("resid", 1)]
    figure = plot_circuit(circuit_of(parts, [1.0, 0.5, -0.5], n_layers=layers, n_heads=n_heads))
    low, high = figure.axes[0].get_ylim()
    assert low > layers - 0.1 and high < 0.1, "layer 0 is on top and the last layer is inside"
    figure.canvas.draw()
    width, height = figure.get_size_inches()
    assert width < 13 and height < 13
    boxes_of_labels = [t.get_window_extent() for t in figure.axes[0].get_yticklabels() if t.get_text()]
    assert not any(a.overlaps(b) for a, b in pairwise(boxes_of_labels))


def test_an_unmeasured_or_empty_circuit_still_has_a_map() -> None:
    unmeasured = replace(run().circuit, marginals=())
    assert len(boxes(plot_circuit(unmeasured))) == len(cells(unmeasured))
    empty = circuit_of([], [], n_layers=3, n_heads=4)
    assert boxes(plot_circuit(empty)) == {}


def test_it_draws_into_the_axes_it_is_given() -> None:
    import matplotlib.pyplot as plt

    figure, ax = plt.subplots()
    assert plot_circuit(run().circuit, ax=ax) is figure
    assert ax.get_ylabel() == "layer"
    plt.close(figure)


# -------------------------------------------------------------------------------------------- effect against budget
def test_the_curve_is_the_path() -> None:
    path = run().path
    found = lines(plot_path(path, *run().others))
    main = next(line for label, line in found.items() if label.startswith("greedy"))
    assert main.get_xdata().tolist() == path.sizes
    assert main.get_ydata().tolist() == path.effects
    assert any(label.startswith("top-k") for label in found)
    held = next(line for label, line in found.items() if "held-out" in label)
    assert held.get_ydata().tolist() == [c.held_out.mean for c in path.choices]
    assert held.get_linestyle() == "--"
    whole = next(line for label, line in found.items() if "everything" in label)
    assert whole.get_ydata()[0] == path.full_effect


def test_the_band_is_the_interval_and_the_legend_tells_the_cost() -> None:
    path = run().path
    figure = plot_path(path)
    band = figure.axes[0].collections[0].get_paths()[0].vertices
    assert band[:, 1].min() == pytest.approx(min(c.score.low for c in path.choices))
    assert band[:, 1].max() == pytest.approx(max(c.score.high for c in path.choices))
    assert any(f"{path.cost['equivalents']:.0f} forward equivalents" in label for label in lines(figure))
    assert path.provenance["metric_unit"] in figure.axes[0].get_ylabel()


def test_the_random_baseline_is_that_of_random_sets() -> None:
    path = run().path
    measured = chance_by_size(path)
    assert 1 < len(measured) <= 5
    size = max(measured)
    members = next(c.members for c in path.choices if len(c.members) == size)
    assert path.tracer is not None
    assert measured[size] == chance_score(path.tracer, members, 0)
    random = next(line for label, line in lines(plot_path(path)).items() if "random" in label)
    assert random.get_ydata().tolist() == [s.mean for s in measured.values()]


def test_without_a_model_the_baseline_is_what_the_file_knows() -> None:
    assert chance_by_size(replace(run().path, tracer=None)) == {}


def test_log_scale_shows_the_log_odds() -> None:
    path = run().path
    main = next(line for label, line in lines(plot_path(path, log_scale=True)).items() if label.startswith("greedy"))
    assert main.get_ydata().tolist() == [c.score.log for c in path.choices]


def test_paths_that_cannot_share_an_axis_are_refused() -> None:
    other = mt.select(tracer_of(mt.mlps(model()), metric=mt.LogitDiff()), [1], mt.TopK())
    with pytest.raises(ValueError, match="cannot share an axis"):
        plot_path(run().path, other)
    with pytest.raises(ValueError, match="no log-scale quantity"):
        plot_path(other, log_scale=True)


# -------------------------------------------------------------------------------------------- subgroups
def test_subgroups_are_means_over_their_prompts() -> None:
    effects, labels = np.array([1.0, 3.0, 10.0, 20.0]), ["a", "a", "b", "b"]
    scores = subgroup_scores(effects, labels)
    assert {name: s.mean for name, s in scores.items()} == {"all": 8.5, "b": 15.0, "a": 2.0}
    figure = plot_subgroups(effects, labels, unit="nats")
    assert figure.axes[0].lines[1].get_xdata().tolist() == [8.5, 15.0, 2.0]
    assert [t.get_text() for t in figure.axes[0].get_yticklabels()][1] == "b (n = 2)"


def test_a_circuit_with_its_tracer_is_measured() -> None:
    known = run()
    assert known.tracer is not None
    expected = known.tracer.effect(known.circuit.mask).double()
    figure = plot_subgroups(known.circuit, known.tracer)
    assert figure.axes[0].lines[1].get_xdata()[0] == pytest.approx(float(expected.mean()))


def test_subgroups_say_what_is_wrong() -> None:
    with pytest.raises(ValueError, match="one subgroup label per prompt"):
        plot_subgroups([1.0, 2.0], ["a"])
    with pytest.raises(ValueError, match="one subgroup label per prompt"):
        plot_subgroups(np.zeros(0), prompts().labels[:0])
    with pytest.raises(TypeError, match="tracer"):
        plot_subgroups(run().circuit, ["a"])


def test_labels_are_not_read_as_mathematics() -> None:
    figure = plot_subgroups([1.0, 2.0], ["$\\frac{", "<b>$"])
    figure.canvas.draw()
