"""The engine: what a set of components does to a metric, by running the model with their activations exchanged.

**What is computed.** For prompts ``e`` and a mask ``m`` with one entry in [0, 1] per hook group,

    act <- (1 - m) * act_running + m * act_source          at every site of a group
    F_e(m) = metric of the answers,   effect_e(m) = F_e(m) - F_e(0),   slope_e = dF_e / dm

**How.** Once per tracer (:meth:`Batches.start`): the base prompts run, their answers and the inputs of some blocks are
kept; the source prompts run, their activations at the groups' sites are kept. Then, for any mask:

1. *Where does it begin to differ?* Blocks before the first that the mask changes, and in a causal model tokens before
   the first that it touches, give what they gave in the base run, or in a run under a similar mask that was kept
   (``restart``). Whether a model may start there is tried once, against a whole run (``trials``).
2. *What is put where?* ``mask_runs`` turns the mask into shares per hook point and these, with the source activations
   (``sources``), the start and the places to read at, into one frozen value, a :class:`Forward`.
3. *Run it.* ``forward.run`` attaches the hooks that the value names, runs the model, takes them off, and counts that
   each fired once. Logits are computed at the reads alone.
4. *Read it.* Log probabilities of the candidate answers go to the metric; nothing that is not finite goes on
   (``finite``).

**The way of one mask**, from the user's call to the hook, one frame a line::

    mt.select                   solvers/select       which sets to look at
    solver.search               solvers              asks for scores of sets
    Search.scores               solvers/search       remembers what was scored
    TracerAim.means             objective/aim        a mean over prompts
    Tracer.effects              tracer               mask from labels, caller's order
    SharedCalls.make            engine/shared        disk, then ranks, then smaller batches if memory runs out
    Batches.effects             engine/batches       batch by batch, restart by restart
    MaskRuns.answers            engine/mask_runs     mask -> Forward, logits -> answers
    run                         engine/forward       hooks on, model, hooks off
    ModelView.run               models/compat             this TransformerLens' way to be run
    at_point                    engine/forward       the hook: ``mix(act, source, share)``

Whatever else runs the model is a ``Forward`` too: path patching (``flow``), mean activations (``means``), the clean run
of a causal trace, the views of a report, and the self-test of ``doctor``.

**Signs and units.** A mask entry of 1 is the source's value, 0 the base run's own. Effects have the metric's unit and
are positive where the metric rises. Cost is counted in forwards over the prompt set: a run of the last quarter of the
blocks on half of the prompts is an eighth of one.

**Memory.** Kept: source activations at the sites, block inputs of two runs, keys and values of one; each on the model's
device, else in host memory beside a GPU, else done without (``estimate``). A batch is as large as its backward fits.
"""
