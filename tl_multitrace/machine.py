"""What a result was computed with: versions, processor, memory, GPUs, PyTorch's settings. Never who, or where.

What is told here is made to be published, in ``run.json`` and in a bug report: no path, host or user name, no secret.
Environment variables are told only where their values are plain numbers or switches.
"""

from __future__ import annotations

import os
import platform
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import psutil
import torch

from tl_multitrace._version import __version__
from tl_multitrace.models import memory
from tl_multitrace.models.compat import installed_version

RESULTS_DEPEND_ON = ("transformer_lens", "torch", "transformers", "numpy", "scipy", "circuitsvis")
ALSO_NEEDED = ("pandas", "networkx", "pydantic", "safetensors", "matplotlib", "jaxtyping", "tqdm", "typer", "rich")
OPTIONAL = ("tokenizers", "accelerate", "datasets", "bitsandbytes", "flash_attn", "beartype", "ipython", "ipywidgets")

SWITCHES = (
    "HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "HF_DATASETS_OFFLINE", "OMP_NUM_THREADS", "MKL_NUM_THREADS",
    "TOKENIZERS_PARALLELISM", "PYTHONHASHSEED", "CUDA_VISIBLE_DEVICES", "CUBLAS_WORKSPACE_CONFIG",
    "PYTORCH_CUDA_ALLOC_CONF", "PYTORCH_ALLOC_CONF", "RANK", "WORLD_SIZE", "LOCAL_RANK",
)  # fmt: skip
"""Environment variables that change what is computed, or whether the network is asked."""

_PLAIN = r"(?:[a-z_]+:)?(?:[\d:.,]+|true|false|on|off|yes|no|random)"
NVIDIA = Path("/proc/driver/nvidia/version")


def versions() -> dict[str, str]:
    """Versions of what a result depends on."""
    return {
        "tl_multitrace": __version__,
        **{name: installed_version(name) for name in RESULTS_DEPEND_ON},
        "python": platform.python_version(),
    }


def packages() -> dict[str, str]:
    """:func:`versions`, and those of everything else that may matter to a bug."""
    return {**versions(), **{name: installed_version(name) for name in (*ALSO_NEEDED, *OPTIONAL)}}


def record(device: torch.device | str | None = None) -> dict[str, Any]:
    """What ``run.json`` says of the machine: platform, the device in use, threads, and what makes runs repeatable."""
    used = torch.device("cpu" if device is None else device)
    return {
        "platform": system(),
        "device": device_name(used),
        "memory_total": memory.total(used),
        "threads": torch.get_num_threads(),
        "cpu": cpu_name(),
        **repeatability(),
    }


def system() -> str:
    """Operating system and processor family, such as ``Linux 5.15.0 x86_64``."""
    return f"{platform.system()} {platform.release()} {platform.machine()}"


def device_name(device: torch.device) -> str:
    """A device by the name of its maker."""
    if device.type == "cuda":
        return f"{device}: {torch.cuda.get_device_name(device)}"
    return str(device)


def repeatability() -> dict[str, Any]:
    """PyTorch's switches on which the last digits depend."""
    return {
        "deterministic_algorithms": torch.are_deterministic_algorithms_enabled(),
        "cudnn_deterministic": torch.backends.cudnn.deterministic,
        "cudnn_benchmark": torch.backends.cudnn.benchmark,
        "float32_matmul_precision": torch.get_float32_matmul_precision(),
    }


# ---------------------------------------------------------------------- processor and memory


def cpu() -> dict[str, Any]:
    """Processor: model, cores, what this process may use of them, instructions that PyTorch uses."""
    return {
        "system": system(),
        "processor": cpu_name(),
        "cores": f"{psutil.cpu_count(logical=False)} ({psutil.cpu_count()} threads), {usable_cores()} usable",
        "PyTorch threads": f"{torch.get_num_threads()} (between operations: {torch.get_num_interop_threads()})",
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "bfloat16 arithmetic": cpu_has_bfloat16(),
    }


def cpu_name() -> str:
    """The processor's model."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        text = ""
    found = re.search(r"^model name\s*:\s*(.+)$", text, re.MULTILINE)
    return found[1].strip() if found else platform.processor() or platform.machine()


def usable_cores() -> int:
    """Processors that this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return psutil.cpu_count() or 1


def cpu_has_bfloat16() -> bool | None:
    """Whether the processor multiplies bfloat16 itself; None where PyTorch does not tell."""
    told = getattr(torch.cpu, "_is_avx512_bf16_supported", None)
    return None if told is None else bool(told())


def memory_facts() -> dict[str, str]:
    """Memory of the machine, and of what limits this process."""
    machine = psutil.virtual_memory()
    facts = {"machine": f"{gib(machine.total)}, {gib(machine.available)} free"}
    for number, limit in enumerate(memory.limits(), 1):
        facts[f"limit {number}"] = f"{gib(limit.limit)}, {gib(limit.free)} free"
    return {**facts, "this process may take": gib(memory.available())}


def gib(count: int) -> str:
    """Bytes as text."""
    return f"{count / (1 << 30):.1f} GiB"


# ---------------------------------------------------------------------- GPUs and PyTorch


def gpus() -> dict[str, str]:
    """What is known of the GPUs, by device."""
    facts = {"driver": nvidia_driver() or "no NVIDIA driver", "PyTorch is built for": built_for()}
    for i in range(torch.cuda.device_count() if torch.cuda.is_available() else 0):
        device = torch.device("cuda", i)
        major, minor = torch.cuda.get_device_capability(device)
        facts[str(device)] = (
            f"{torch.cuda.get_device_name(device)}, {gib(memory.available(device))} free of "
            f"{gib(memory.total(device))}, compute capability {major}.{minor}"
        )
    if torch.cuda.is_available():
        facts["bfloat16"] = str(torch.cuda.is_bf16_supported())
    if torch.backends.mps.is_available():
        facts["mps"] = f"{gib(memory.available('mps'))} free of {gib(memory.total('mps'))}"
    return facts


def built_for() -> str:
    """The kind of GPU that this PyTorch was compiled for."""
    if torch.version.hip:
        return f"ROCm {torch.version.hip}"
    return f"CUDA {torch.version.cuda}" if torch.version.cuda else "CPU"


def nvidia_driver() -> str | None:
    """Version of the NVIDIA driver, or None."""
    try:
        found = re.search(r"Kernel Module\D*?(\d[\d.]+)", NVIDIA.read_text(encoding="utf-8", errors="replace"))
    except OSError:
        return None
    return found[1] if found else None


def backends() -> list[str]:
    """What ``torch.distributed`` can talk through."""
    if not torch.distributed.is_available():
        return []
    tests = {name: getattr(torch.distributed, f"is_{name}_available", None) for name in ("gloo", "nccl", "mpi", "xccl")}
    return [name for name, test in tests.items() if test is not None and test()]


def torch_facts() -> dict[str, str]:
    """PyTorch's settings."""
    return {
        "distributed backends": ", ".join(backends()) or "none",
        "default type": str(torch.get_default_dtype()).removeprefix("torch."),
        **{name.replace("_", " "): str(value) for name, value in repeatability().items()},
    }


def switches(environment: Mapping[str, str] | None = None) -> dict[str, str]:
    """Environment variables of :data:`SWITCHES` that are set; ``(set)`` in place of a value that is no plain switch."""
    given = os.environ if environment is None else environment
    plain = re.compile(rf"{_PLAIN}(?:,{_PLAIN})*", re.IGNORECASE | re.ASCII)
    return {
        name: given[name] if len(given[name]) <= 80 and plain.fullmatch(given[name]) else "(set)"
        for name in SWITCHES
        if given.get(name)
    }
