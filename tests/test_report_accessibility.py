"""The report under axe-core in headless Chromium, light and dark: nothing serious, nothing critical.

axe-core is not a dependency: npm fetches one fixed version of it into the user's cache, and its digest is checked.
Where there is no npm, no registry or no Chromium, these tests are skipped.
"""

from __future__ import annotations

import hashlib
import html
import io
import json
import os
import re
import shutil
import subprocess
import tarfile
import tempfile
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from render_cases import measured
from test_report_browser import CHROMIUM, browse
from typer.testing import CliRunner

from tl_multitrace.cli import app as cli
from tl_multitrace.render import write_report

VERSION = "4.14.1"
DIGEST = "29348999450cdf2849a8e70b7912fc2da85a849da39c0d0d5394f51d4a9ed95c"
SCHEMES = {"light": 1, "dark": 0}  # as Chromium counts them in preferredColorScheme

pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(CHROMIUM is None, reason="no Chromium: install it to check pages in a browser (apt: chromium)"),
]

# Everything is open while it is looked at; what is found is left in the document for --dump-dom.
RUN = """
addEventListener("load", async () => {
  document.querySelectorAll("details").forEach((part) => { part.open = true; });
  await new Promise((done) => setTimeout(done, 1500));
  const { violations, passes } = await axe.run();
  const dark = matchMedia("(prefers-color-scheme: dark)").matches;
  const told = violations.map((v) => ({ id: v.id, impact: v.impact, nodes: v.nodes.map((n) => n.html.slice(0, 200)) }));
  const place = document.createElement("pre");
  place.id = "axe";
  place.textContent = JSON.stringify({ dark, violations: told, passes: passes.map((p) => p.id) });
  document.body.append(place);
});
"""


@cache
def axe() -> str:
    """The source of axe-core; skips the test where it can't be had."""
    caches = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    cached = caches / "tl-multitrace-tests" / f"axe-{VERSION}.js"
    if not cached.is_file():
        code = _fetched()
        cached.parent.mkdir(parents=True, exist_ok=True)
        cached.write_bytes(code)
    code = cached.read_bytes()
    assert hashlib.sha256(code).hexdigest() == DIGEST, f"{cached} is not axe-core {VERSION}: delete it"
    return code.decode("utf-8")


def _fetched() -> bytes:
    npm = shutil.which("npm")
    if npm is None:
        pytest.skip("no npm to fetch axe-core with (apt: npm)")
    with tempfile.TemporaryDirectory() as folder:
        command = [npm, "pack", f"axe-core@{VERSION}", "--silent"]
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=120)
        archives = list(Path(folder).glob("*.tgz"))
        if done.returncode or not archives:
            pytest.skip(f"npm could not fetch axe-core {VERSION}: {done.stderr.strip()[-300:]}")
        with tarfile.open(fileobj=io.BytesIO(archives[0].read_bytes())) as archive:
            member = archive.extractfile("package/axe.min.js")
            assert member is not None
            return member.read()


def with_scripts(source: str, page: Path, *scripts: str) -> Path:
    """The page with scripts of a test; its policy is taken off, since it would stop them, and the rest is as it was."""
    free, removed = re.subn(r'<meta http-equiv="Content-Security-Policy"[^>]*>', "", source)
    assert removed == 1
    added = "".join(f"<script>{code}</script>" for code in scripts)
    page.write_text(free.replace("</body>", added + "</body>"), encoding="utf-8")
    return page


def looked_at(source: str, folder: Path, scheme: str) -> dict[str, Any]:
    """What axe finds on a page."""
    page = with_scripts(source, folder / f"{scheme}.html", axe().replace("</script", r"<\/script"), RUN)
    setting = f"--blink-settings=preferredColorScheme={SCHEMES[scheme]}"
    seen = browse(page, setting, "--window-size=1100,900", "--virtual-time-budget=60000")
    found = re.search(r'<pre id="axe">(.*?)</pre>', seen, re.DOTALL)
    assert found is not None, "axe did not come to an end"
    result: dict[str, Any] = json.loads(html.unescape(found.group(1)))
    assert result["dark"] == (scheme == "dark")
    return result


def grave(result: dict[str, Any]) -> list[dict[str, Any]]:
    return [v for v in result["violations"] if v["impact"] in ("serious", "critical")]


@pytest.mark.parametrize("scheme", SCHEMES)
def test_nothing_keeps_a_reader_out(scheme: str, tmp_path: Path) -> None:
    source = write_report(measured(), tmp_path / "report.html").read_text(encoding="utf-8")
    result = looked_at(source, tmp_path, scheme)
    assert {"color-contrast", "image-alt", "region", "scrollable-region-focusable"} & set(result["passes"])
    assert grave(result) == []


@pytest.mark.slow
def test_the_demos_report_with_all_its_parts(tmp_path: Path) -> None:
    done = CliRunner().invoke(cli.app, ["demo", "--out", str(tmp_path / "run"), "--quiet"])
    assert done.exit_code == 0, done.output
    source = (tmp_path / "run" / "report.html").read_text(encoding="utf-8")
    assert all(f'id="{part}"' in source for part in ("subgroups", "evaluation", "stability", "side-effects", "flow"))
    for scheme in SCHEMES:
        assert grave(looked_at(source, tmp_path, scheme)) == []


def test_axe_would_have_told(tmp_path: Path) -> None:
    source = write_report(measured(), tmp_path / "report.html").read_text(encoding="utf-8")
    worse = source.replace("<main", '<img src="data:,"><p style="color:#aaa;background:#bbb">pale</p><main')
    found = {v["id"] for v in grave(looked_at(worse, tmp_path, "light"))}
    assert {"image-alt", "color-contrast"} <= found


def test_a_table_is_sorted_by_its_headings(tmp_path: Path) -> None:
    press = "const heading = [...document.querySelectorAll('#components th')].find((h) => h.textContent == 'share');"
    press += "heading.querySelector('button').focus(); document.activeElement.click();"
    source = write_report(measured(), tmp_path / "report.html").read_text(encoding="utf-8")
    for clicks, direction in ((1, "descending"), (2, "ascending")):
        again = "document.activeElement.click();" * (clicks - 1)
        seen = browse(with_scripts(source, tmp_path / f"sorted-{clicks}.html", press + again))
        part = seen[seen.index('<section id="components"') : seen.index("</section>", seen.index('id="components"'))]
        assert part.count("aria-sort") == 1 and f'aria-sort="{direction}"' in part
        shares = [float(v) for v in re.findall(r'data-v="([^"]+)">[^<]*%', part)]
        assert len(shares) > 1 and shares == sorted(shares, reverse=direction == "descending")
