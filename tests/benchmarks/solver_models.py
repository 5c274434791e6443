"""Models and prompts that solvers are compared on, all from fixed seeds.

python tests/benchmarks/solver_models.py    # train the 12 x 12 model now: some minutes, kept in .cache beside this
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
if __name__ == "__main__":
    sys.path[:0] = [str(HERE.parent), str(HERE.parents[1])]

from oracles import pairs_of, random_examples  # noqa: E402

import tl_multitrace as mt  # noqa: E402
from tiny_models import HAS_BRIDGE, random_gpt2  # noqa: E402

CACHE = HERE / ".cache"
PAIRS = 48
TRAINING_STEPS = 2600
TASKS = ("professions", "ioi", "induction")


@cache
def demo() -> Any:
    """The model that ships with the package: 32 heads, 2048 neurons."""
    return mt.load_model("demo")


@cache
def trained() -> Any:
    """A 12 x 12 GPT-2 of width 96 trained on the demo model's grammar: 144 heads, 4608 neurons."""
    from tl_multitrace.demo import load_hf_model
    from tl_multitrace.demo.tokenizer import load_tokenizer
    from tl_multitrace.demo.train import TrainConfig, save_model, text_digest, train

    tokenizer = load_tokenizer(Path(mt.__file__).parent / "demo")
    folder = CACHE / f"trained-12x12-{text_digest(0)[:12]}-{TRAINING_STEPS}"
    if not (folder / "config.json").is_file():
        config = TrainConfig(
            n_layer=12,
            n_head=12,
            n_embd=96,
            n_inner=384,
            steps=TRAINING_STEPS,
            threads=1,
            learning_rate=2e-3,
            batch_tokens=2048,
        )
        folder.mkdir(parents=True, exist_ok=True)
        (CACHE / ".gitignore").write_text("*\n")
        save_model(train(config, tokenizer, 0), folder)
    hf = load_hf_model(folder)
    if HAS_BRIDGE:
        from transformer_lens.model_bridge import TransformerBridge

        return TransformerBridge.boot_transformers(
            "local/trained-12x12", hf_model=hf, tokenizer=tokenizer, device="cpu"
        )
    from transformer_lens import HookedTransformer

    return HookedTransformer.from_pretrained_no_processing("gpt2", hf_model=hf, tokenizer=tokenizer, device="cpu")


@cache
def diffuse() -> Any:
    """A random 12 x 12 GPT-2 of width 96 with boosted weights: every head matters a little, and they interact."""
    return random_gpt2(12, 12, 96, 128, 32, seed=0, boost=5.0)


def _of_task(model: Callable[[], Any], name: str, groups: Callable[[Any], mt.HookGroups]) -> tuple[mt.Tracer, Any]:
    task = mt.task(name, model(), n=2 * PAIRS, seed=0)
    found, other = task.pairs.split(0.5, seed=0)
    return mt.Tracer(model(), found, groups(model()), metric=task.metric), other


def _random(groups: Callable[[Any], mt.HookGroups], metric: mt.Metric) -> tuple[mt.Tracer, Any]:
    pairs = pairs_of(random_examples(2 * PAIRS, seed=0))
    found, other = pairs.split(0.5, seed=0)
    return mt.Tracer(diffuse(), found, groups(diffuse()), metric=metric), other


def problem(name: str) -> tuple[mt.Tracer, mt.PromptPairs]:
    """A tracer and held-out prompts, by a name such as ``demo-ioi``, ``diffuse-odds``, ``trained-ioi:neurons``."""
    where, _, kind = name.partition(":")
    model, _, task = where.partition("-")
    groups = mt.neurons if kind == "neurons" else mt.heads
    if model == "diffuse":
        return _random(groups, mt.OddsRatio() if task == "odds" else mt.LogitDiff())
    return _of_task({"demo": demo, "trained": trained}[model], task, groups)


if __name__ == "__main__":
    trained()
