"""Circuits in which heads decide where other heads look, and circuits that are not of heads alone."""

from __future__ import annotations

from itertools import combinations

from .blueprint import SHARP, Attend, Blueprint, at_position
from .case import UNIT, Truth
from .plan import (
    CLASSES,
    SITES,
    Leak,
    Plan,
    Prompt,
    class_pairs,
    messenger,
    sets,
    sigmoid,
    signal_prompts,
    steps,
    vocabulary,
)


def _when(flag: str, position: int) -> Attend:
    """Look at a position where a flag is up at the query, otherwise at the start, which carries nothing."""
    return [("one", "pos0", SHARP), (flag, f"pos{position}", 2 * SHARP)]


def _to_logits(prefix: str, units: float) -> dict[str, dict[str, float]]:
    return {f"{prefix}{k}": {f"out{k}": units * UNIT} for k in CLASSES}


def induction(bp: Blueprint) -> Plan:
    """``START A B filler END A -> B``, by a previous-token head and an induction head.

    The first tells B's position that A came before; the second, at the second A, looks for that and copies B. The
    corrupted prompt has a neutral token for the first A.

    The two are in series: patching the second replaces all that the first could change, and patching the first moves
    the second to or from the match (B stands in both prompts). So each alone is minimal, in both directions.
    """
    vocabulary(bp)
    for k in CLASSES:
        bp.token(f"A{k}", f"signal{k}", f"key{k}")
        bp.token(f"ANSWER{k}", f"name{k}")
    last = bp.shape.n_ctx
    back: Attend = [(f"pos{p}", f"pos{p - 1}", SHARP) for p in range(1, last)]
    previous = bp.head(0, back, {f"key{k}": {f"before{k}": 1.0} for k in CLASSES})
    match: Attend = [("one", "pos0", SHARP), *[(f"key{k}", f"before{k}", 2 * SHARP) for k in CLASSES]]
    copy = bp.head(2, match, _to_logits("name", 1.0))
    prompts = []
    for number, (k, wrong) in enumerate(class_pairs()):
        tail = [f"ANSWER{k}", f"f{number % 4}", "END", f"A{k}"]
        prompts.append(Prompt(["START", f"A{k}", *tail], ["START", "NEUTRAL", *tail], k, wrong))
    truth = Truth(sets([previous], [copy]), steps((1.0, [copy])))
    return Plan(prompts, {"noising": truth, "restoring": truth})


def backup(bp: Blueprint) -> Plan:
    """A main head that writes the answer and a backup that looks at the site only while the main one is silent.

    A neuron turns the main head's silence into a flag, and the flag is the backup's query. The backup's own output is
    zero in both runs: in the clean one it looks away, in the corrupted one the site is empty. Restoring: ``{main}`` is
    minimal. Noising: main alone is made up for at once and backup alone was silent anyway, so both single effects are
    zero and only ``{main, backup}`` works. The gradient of main at the empty set is a full unit all the same.
    """
    prompts = signal_prompts(bp)
    carry = {f"signal{k}": {f"out{k}": UNIT, "spoken": 1.0} for k in CLASSES}
    main = bp.head(0, at_position(SITES[0]), carry)
    bp.neuron(0, {"spoken": -2.0, "one": 1.0}, {"silence": 1.0})
    second = bp.head(2, _when("silence", SITES[1]), _to_logits("signal", 1.0))
    restoring = Truth(sets([main]), steps((1.0, [main])))
    noising = Truth(sets([main, second]), steps((0.0, ()), (1.0, [main, second])), frozenset([main, second]))
    return Plan(prompts, {"noising": noising, "restoring": restoring})


def mini_ioi(bp: Blueprint) -> Plan:
    """Two name movers (1 and 0.8 units), a negative head (-0.6), and two backups (0.7 and 0.5).

    The backups look at the name only while both movers are silent. The full effect is 1.2 units; the best set has 1.8.

    Restoring: the movers write, the backups' clean output is zero, the negative head harms: ``{mover1, mover2}``.
    Noising: one mover alone is just lost (-1), but losing both wakes the backups (-1.8 + 1.2), which is *worse* than
    losing one; with one backup held down it is -1.3, with both -1.8. So the best sets of size 1 and 2 have 1 unit, and
    only ``{mover1, mover2, backup1, backup2}`` reaches 1.8, without the negative head.
    """
    prompts = signal_prompts(bp)
    movers = []
    for stage, units in ((0, 1.0), (1, 0.8)):
        carry = {f"signal{k}": {f"out{k}": units * UNIT, "spoken": 1.0} for k in CLASSES}
        movers.append(bp.head(stage, at_position(SITES[stage]), carry))
    messenger(bp, 1, "out", site=2, scale=-0.6 * UNIT)
    bp.neuron(1, {"spoken": -2.0, "one": 1.0}, {"silence": 1.0})
    backups = [bp.head(2, _when("silence", SITES[j]), _to_logits("signal", u)) for j, u in ((0, 0.7), (1, 0.5))]
    restoring = Truth(sets(movers), steps((1.0, movers[:1]), (1.8, movers)))
    ladder = steps((1.0, movers[:1]), (1.0, movers[:1]), (1.3, [*movers, backups[0]]), (1.8, [*movers, *backups]))
    noising = Truth(sets([*movers, *backups]), ladder, frozenset(backups))
    return Plan(prompts, {"noising": noising, "restoring": restoring})


def key_query_and(bp: Blueprint) -> Plan:
    """Two heads whose flags have to meet in another head's score, ``-60 * query flag * key flag``.

    Candidates are attention patterns. No head's *output* differs between the runs in anything that matters, so
    ``hook_z`` masks are blind to it.

    Prompts are ``START T F - name END`` (clean) and ``START F T name - END`` (corrupted). The flag heads look for T and
    would write what they find at F, which is nothing in either run; the readers look at the blank ``-``, so they write
    nothing either. Under the other run's *pattern* they look at F, or at the name: a flag at END as a query, a flag at
    the blank as a key. With both flags, every reader is pushed off the blank onto the name; with one, the product is
    zero. The name in the clean prompt is the wrong answer, in the corrupted one the right answer.

    So in both directions ``{query, key}`` moves all three readers (a whole unit) while each of the two does nothing
    alone and has no gradient; a reader's own pattern moves a third, so ``{reader, reader, reader}`` is the other
    minimal set, and greedy takes that road: two thirds at size 2.
    """
    vocabulary(bp)
    for name, facts in {"START": ["other"], "END": ["other"], "BLANK": ["blank"]}.items():
        bp.token(name, *facts)
    bp.token("T", "other", "true")
    bp.token("F", "other", "false")
    for k in CLASSES:
        bp.token(f"NAME{k}", "isname", f"name{k}")
    query = bp.head(0, [("one", "true", SHARP)], {"false": {"queryflag": 1.0}})
    key = bp.head(0, [("one", "pos0", SHARP), ("isname", "true", 2 * SHARP)], {"false": {"keyflag": 1.0}})
    blank: Attend = [("one", "blank", SHARP), ("one", "other", -SHARP)]
    readers = []
    for stage in (1, 1, 2):
        look: Attend = [*blank, ("queryflag", "keyflag", -2 * SHARP)]
        readers.append(bp.head(stage, look, _to_logits("name", 1 / 3)))
    pair, crowd = [("pattern", *c[1:]) for c in (query, key)], [("pattern", *c[1:]) for c in readers]
    prompts = []
    for k, wrong in class_pairs():
        clean = ["START", "T", "F", "BLANK", f"NAME{wrong}", "END"]
        prompts.append(Prompt(clean, ["START", "F", "T", f"NAME{k}", "BLANK", "END"], k, wrong))
    truth = Truth(sets(pair, crowd), steps((1 / 3, crowd[:1]), (1.0, pair)), frozenset(pair))
    leak = Leak(blank, [f"name{k}" for k in CLASSES])
    return Plan(prompts, {"noising": truth, "restoring": truth}, "pattern", leak)


def majority(bp: Blueprint, voters: int) -> Plan:
    """An odd number of neurons, in the first two stages, that fire on a cue; a head reads the name if most of them do.

    The head's score for the name is 8 per vote against 8 times half the number for the start, so the share it takes is
    ``sigmoid(8 * (votes - voters / 2))``: 2 % at one vote too few, 98 % at just enough. The name is in both prompts,
    the cue only in the clean one. In both directions any majority of the voters is a minimal set, and fewer do next
    to nothing; every other neuron is idle.
    """
    vocabulary(bp)
    for k in CLASSES:
        bp.token(f"NAME{k}", f"name{k}")
    messenger(bp, 0, "cue")
    cue = {f"cue{k}": 2.0 for k in CLASSES}
    votes = [bp.neuron(j % 2, {**cue, "one": -1.0}, {"votes": 1.0}) for j in range(voters)]
    gate: Attend = [("one", "pos0", 4.0 * voters), ("votes", "pos2", 8.0)]
    bp.head(2, gate, _to_logits("name", 1.0))
    prompts = []
    for number, (k, wrong) in enumerate(class_pairs()):
        tail = [f"NAME{k}", f"f{number % 4}", f"f{number % 3}", "END"]
        prompts.append(Prompt(["START", f"SIGNAL{k}", *tail], ["START", "NEUTRAL", *tail], k, wrong))
    share = [sigmoid(8 * (count - voters / 2)) for count in range(voters + 1)]  # symmetric: the same both ways
    ladder = steps(*[(share[size] - share[0], votes[:size]) for size in range(1, voters + 1)])
    truth = Truth(sets(*combinations(votes, voters // 2 + 1)), ladder, frozenset(votes))
    return Plan(prompts, {"noising": truth, "restoring": truth}, "neuron", Leak(reads=[f"cue{k}" for k in CLASSES]))


def two_site(bp: Blueprint) -> Plan:
    """A fact in two places, and two heads that read it where the two meet.

    An early MLP looks up the subject's attribute at the subject, a head brings the relation to the end, and two
    extractors at the end read the attribute once the relation is there. Candidates are heads and whole MLPs.

    Restoring: the attribute without the relation is not read, the relation without the attribute has nothing to read,
    so ``{MLP, relation}`` is needed as a pair (one unit); each extractor alone brings half, so ``{extractor,
    extractor}`` is the other minimal set. Noising: losing either the attribute or the relation loses everything, so
    each is minimal alone, as are the two extractors together.
    """
    prompts = []
    vocabulary(bp)
    bp.token("RELATION", "relation")
    for k in CLASSES:
        lookup = bp.neuron(0, {f"signal{k}": 2.0, "one": -1.0}, {f"attribute{k}": 1.0})
    mlp = ("mlp", lookup[1], None)
    relation = bp.head(1, at_position(SITES[1]), {"relation": {"asked": 1.0}})
    extractors = [bp.head(2, _when("asked", SITES[0]), _to_logits("attribute", 0.5)) for _ in range(2)]
    for number, (k, wrong) in enumerate(class_pairs()):
        tail = [f"f{number % 4}", f"f{number % 3}", "END"]
        clean = ["START", f"SIGNAL{k}", "RELATION", *tail]
        prompts.append(Prompt(clean, ["START", "NEUTRAL", "NEUTRAL", *tail], k, wrong))
    pair = [mlp, relation]
    restoring = Truth(sets(pair, extractors), steps((0.5, extractors[:1]), (1.0, pair)), frozenset(pair))
    noising = Truth(sets([mlp], [relation], extractors), steps((1.0, [mlp])))
    return Plan(prompts, {"noising": noising, "restoring": restoring}, "mixed")
