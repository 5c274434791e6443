"""Circuits in which messages from several heads meet at a gate of MLP neurons at the last position.

In each, planted heads read the class at a site (1 when clean, nothing when corrupted) and write it to a message
direction of their own, and neurons, one gate per class, turn messages into the logit of that class.
"""

from __future__ import annotations

from .blueprint import Blueprint
from .case import UNIT, Truth
from .plan import CLASSES, Plan, gelu, messenger, sets, signal_prompts, steps


def and_hard(bp: Blueprint, members: int) -> Plan:
    """AND of heads behind a ReLU threshold: the gate is ``relu(2 * sum - (2 * members - 1))``.

    Restoring: the gate stays at or below -1 until all members are in, so only the whole set works, every smaller set
    does exactly nothing, and the gradient at the empty set is exactly zero. Noising: the gate starts at +1 and any
    member takes it to -1, so each alone is minimal.
    """
    prompts = signal_prompts(bp)
    heads = [messenger(bp, stage=j, name=f"m{j}_", site=j) for j in range(members)]
    for k in CLASSES:
        read = {f"m{j}_{k}": 2.0 for j in range(members)}
        bp.neuron(2, {**read, "one": 1.0 - 2 * members}, {f"out{k}": UNIT})
    short = [(0.0, ())] * (members - 1)
    restoring = Truth(sets(heads), steps(*short, (1.0, heads)), frozenset(heads))
    noising = Truth(sets(*[[head] for head in heads]), steps((1.0, heads[:1])))
    return Plan(prompts, {"noising": noising, "restoring": restoring})


def and2_soft(bp: Blueprint) -> Plan:
    """A product of two heads' messages from the even part of GELU.

    It is ``E(a + b) - E(a - b)`` with ``E(x) = gelu(x) + gelu(-x)``. Restoring: the product is zero while either is
    zero, so only the pair works; the gradient at the empty set is zero, half-way it is not. Noising: taking either
    message away leaves zero, so each head alone is minimal.
    """
    prompts = signal_prompts(bp)
    a, b = messenger(bp, 0, "a", site=0), messenger(bp, 1, "b", site=1)
    height = gelu(2.0) + gelu(-2.0)
    for k in CLASSES:
        for sign in (1.0, -1.0):
            bp.neuron(2, {f"a{k}": sign, f"b{k}": sign}, {f"out{k}": UNIT / height})
            bp.neuron(2, {f"a{k}": sign, f"b{k}": -sign}, {f"out{k}": -UNIT / height})
    restoring = Truth(sets([a, b]), steps((0.0, ()), (1.0, [a, b])), frozenset([a, b]))
    noising = Truth(sets([a], [b]), steps((1.0, [a])))
    return Plan(prompts, {"noising": noising, "restoring": restoring})


def and3_soft(bp: Blueprint) -> Plan:
    """AND of three heads behind a smooth threshold: ``gelu(2 * sum - 4)``, scaled to one unit from none to all.

    GELU dips below zero, so when restoring a single member has a small effect of the *wrong* sign (-2 %), a pair
    almost none, and the triple a whole unit: only the triple works, and it has to be entered through a loss.
    Noising: any one member brings the gate from 2 to 0, so each alone is minimal; a second one adds the 2 % dip.
    """
    prompts = signal_prompts(bp)
    heads = [messenger(bp, stage=j, name=f"m{j}_", site=j) for j in range(3)]
    scale = 1.0 / (gelu(2.0) - gelu(-4.0))
    for k in CLASSES:
        bp.neuron(2, {**{f"m{j}_{k}": 2.0 for j in range(3)}, "one": -4.0}, {f"out{k}": UNIT * scale})
    level = [scale * gelu(2.0 * count - 4.0) for count in range(4)]
    restoring = Truth(sets(heads), steps((0.0, ()), (level[2] - level[0], heads[:2]), (1.0, heads)))
    noising = Truth(
        sets(*[[head] for head in heads]),
        steps((level[3] - level[2], heads[:1]), (level[3] - level[1], heads[:2])),
    )
    return Plan(prompts, {"noising": noising, "restoring": restoring})


def or_hard(bp: Blueprint, members: int) -> Plan:
    """OR of heads: ``-relu(1 - 2 * sum)`` per class, so one message is enough and more change nothing.

    Restoring: each head alone is minimal. Noising: while one message is left the gate stays at -1 or below, so only
    the whole set works, every smaller set does exactly nothing, and the gradient at the empty set is exactly zero.
    """
    prompts = signal_prompts(bp)
    heads = [messenger(bp, stage=j, name=f"m{j}_", site=j) for j in range(members)]
    for k in CLASSES:
        bp.neuron(2, {**{f"m{j}_{k}": -2.0 for j in range(members)}, "one": 1.0}, {f"out{k}": -UNIT})
    short = [(0.0, ())] * (members - 1)
    restoring = Truth(sets(*[[head] for head in heads]), steps((1.0, heads[:1])))
    noising = Truth(sets(heads), steps(*short, (1.0, heads)), frozenset(heads))
    return Plan(prompts, {"noising": noising, "restoring": restoring})


def and_of_ors(bp: Blueprint) -> Plan:
    """``(a or b) and (c or d)``: one layer of neurons says that an OR has failed, the next fires when none has.

    Restoring: one head satisfies one OR, which is not enough; any head of the first OR with any of the second is
    minimal. Noising: one head gone is covered by its partner, so an OR has to go as a whole: ``{a, b}`` or ``{c, d}``.
    Every single effect is zero in both directions, and so is the gradient at the empty set.
    """
    prompts = signal_prompts(bp)
    a, b = messenger(bp, 0, "a", site=0), messenger(bp, 1, "b", site=1)
    c, d = messenger(bp, 0, "c", site=2), messenger(bp, 1, "d", site=0)
    for k in CLASSES:
        bp.neuron(1, {f"a{k}": -2.0, f"b{k}": -2.0, "one": 1.0}, {f"failed{k}": 1.0})
        bp.neuron(1, {f"c{k}": -2.0, f"d{k}": -2.0, "one": 1.0}, {f"failed{k}": 1.0})
        bp.neuron(2, {f"failed{k}": -2.0, "one": 1.0}, {f"out{k}": UNIT})
    everyone = frozenset([a, b, c, d])
    restoring = Truth(sets([a, c], [a, d], [b, c], [b, d]), steps((0.0, ()), (1.0, [a, c])), everyone)
    noising = Truth(sets([a, b], [c, d]), steps((0.0, ()), (1.0, [a, b])), everyone)
    return Plan(prompts, {"noising": noising, "restoring": restoring})


def decoys(bp: Blueprint) -> Plan:
    """An AND pair worth four units beside two heads that write +3 and -3 units, cancelling in the full model.

    Restoring: the best head alone is the +3 decoy, the best pair is the AND pair (neither has an effect alone), the
    best three are the pair and the +3 decoy; the -3 decoy, as large by size of effect, always harms. Noising: either
    member of the pair loses four units, the +3 decoy three more. So the sets that reach the best effect (7 units) are
    the pair with the +3 decoy, and one of the pair with it. The full model's effect is 4.
    """
    prompts = signal_prompts(bp)
    a, b = messenger(bp, 0, "a", site=0), messenger(bp, 2, "b", site=1)
    plus = messenger(bp, 1, "out", site=2, scale=3 * UNIT)
    messenger(bp, 1, "out", site=0, scale=-3 * UNIT)
    for k in CLASSES:
        bp.neuron(2, {f"a{k}": 2.0, f"b{k}": 2.0, "one": -3.0}, {f"out{k}": 4 * UNIT})
    restoring = Truth(sets([a, b, plus]), steps((3.0, [plus]), (4.0, [a, b]), (7.0, [a, b, plus])), frozenset([a, b]))
    noising = Truth(sets([a, plus], [b, plus]), steps((4.0, [a]), (7.0, [a, plus])))
    return Plan(prompts, {"noising": noising, "restoring": restoring})


def inhibitor(bp: Blueprint) -> Plan:
    """A gate ``relu(2a + b - 2i + 0.5)`` with an inhibitor i that is on in clean prompts too.

    Restoring: a brings 2 units, b 1, and i takes two away again (or half a unit when it is alone), so ``{a, b}`` is
    minimal and best, at 3 units where the full model has 1. Noising: from 1.5 units, taking a leaves the gate shut
    (-1.5), taking b leaves 0.5 (-1), taking i *raises* it by 2; ``{a}`` alone is minimal.
    """
    prompts = signal_prompts(bp)
    a, b = messenger(bp, 0, "a", site=0), messenger(bp, 1, "b", site=1)
    messenger(bp, 1, "i", site=2)
    for k in CLASSES:
        bp.neuron(2, {f"a{k}": 2.0, f"b{k}": 1.0, f"i{k}": -2.0, "one": 0.5}, {f"out{k}": UNIT})
    restoring = Truth(sets([a, b]), steps((2.0, [a]), (3.0, [a, b])))
    noising = Truth(sets([a]), steps((1.5, [a])))
    return Plan(prompts, {"noising": noising, "restoring": restoring})


def harmful_xor(bp: Blueprint) -> Plan:
    """A head a worth one unit, and a pair x, y that costs three units when exactly one of them is on.

    Restoring: ``{a}`` is minimal; x or y alone harms, both together do nothing, so whoever starts from the full set
    must drop the two at once. Noising: that harm is what is looked for, so one of x, y with a is minimal (-4 units).
    The XOR is ``relu(4/3 (x - y) - 1/3)`` and its mirror, which are flat at the empty set in both directions: the
    gradient there says zero although one of the pair alone moves three units.
    """
    prompts = signal_prompts(bp)
    a = messenger(bp, 0, "out", site=0, scale=UNIT)
    x, y = messenger(bp, 0, "x", site=1), messenger(bp, 1, "y", site=2)
    for k in CLASSES:
        for sign in (1.0, -1.0):
            read = {f"x{k}": sign * 4 / 3, f"y{k}": -sign * 4 / 3, "one": -1 / 3}
            bp.neuron(2, read, {f"out{k}": -3 * UNIT})
    restoring = Truth(sets([a]), steps((1.0, [a])))
    noising = Truth(sets([a, x], [a, y]), steps((3.0, [x]), (4.0, [a, x])))
    return Plan(prompts, {"noising": noising, "restoring": restoring})
