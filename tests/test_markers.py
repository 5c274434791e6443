"""What the markers select: nightly tests run when asked for by name, whatever else is asked for."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

TESTS = Path(__file__).resolve().parent
SUITE = """
import pytest

def test_plain(): pass

@pytest.mark.lens
def test_lens(): pass

@pytest.mark.lens
@pytest.mark.nightly
def test_lens_nightly(): pass

@pytest.mark.parametrize("case", ["easy", pytest.param("more", marks=pytest.mark.nightly)])
def test_cases(case): pass
"""


@pytest.mark.parametrize(
    ("asked", "run"),
    [
        ([], ["plain", "lens", "cases[easy]"]),
        (["-m", "lens"], ["lens"]),
        (["-m", "not lens"], ["plain", "cases[easy]"]),
        (["-m", "nightly"], ["lens_nightly", "cases[more]"]),
        (["-m", "lens and nightly"], ["lens_nightly"]),
        (["-k", "more"], []),
    ],
    ids=str,
)
def test_nightly_tests_run_only_when_named(asked: list[str], run: list[str], tmp_path: Path) -> None:
    (tmp_path / "test_some.py").write_text(SUITE, encoding="utf-8")
    (tmp_path / "pytest.ini").write_text("[pytest]\nmarkers =\n    lens\n    nightly\n", encoding="utf-8")
    given = ["-p", "nightly", "-p", "no:cacheprovider", "--collect-only", "-qq", *asked]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", *given, "--no-header", "--override-ini", "addopts=-v"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(TESTS), "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    found = [line.rpartition("::test_")[2] for line in done.stdout.splitlines() if "::" in line]
    assert found == run, done.stdout + done.stderr


def test_the_suite_itself_leaves_them_out(request: pytest.FixtureRequest) -> None:
    from nightly import pytest_collection_modifyitems as hook

    assert hook in [h.function for h in request.config.hook.pytest_collection_modifyitems.get_hookimpls()]
