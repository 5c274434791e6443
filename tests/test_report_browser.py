"""The report in a real browser: its views are drawn, nothing is fetched, and hostile prompts do nothing."""

from __future__ import annotations

import re
import shutil
import socket
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
import render_cases
from render_cases import EVIL, EVIL_IMAGE, evil_run, measured, prompts, run
from test_report import Page
from test_trace_grid import made

import tl_multitrace as mt
from tl_multitrace.evaluation.side_effects import SideEffect, SideEffects
from tl_multitrace.render import Shown, show, write_report

CHROMIUM = next((p for name in ("chromium", "chromium-browser", "google-chrome") if (p := shutil.which(name))), None)
FLAGS = (
    "--headless --no-sandbox --disable-gpu --disable-background-networking --disable-component-update --no-first-run"
)
CANARY = "canary.invalid"

pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(CHROMIUM is None, reason="no Chromium: install it to check pages in a browser (apt: chromium)"),
]


def browse(page: Path, *options: str) -> str:
    """The page's document after its scripts have run."""
    profile = page.parent / f"profile-{page.stem}"
    command = [str(CHROMIUM), *FLAGS.split(), f"--user-data-dir={profile}", "--virtual-time-budget=8000", *options]
    done = subprocess.run([*command, "--dump-dom", page.as_uri()], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


@contextmanager
def recording_proxy() -> Iterator[tuple[str, list[str]]]:
    """A proxy that lets nothing through and remembers what was asked of it."""
    asked: list[str] = []
    server = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        while True:
            try:
                client, _ = server.accept()
            except OSError:
                return
            with client:
                client.settimeout(5)
                try:
                    asked.append(client.recv(4096).split(b"\r\n")[0].decode("latin-1"))
                    client.sendall(b"HTTP/1.1 503 Unavailable\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
                except OSError:
                    pass

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    try:
        yield f"--proxy-server=http://127.0.0.1:{server.getsockname()[1]}", asked
    finally:
        server.close()
        thread.join(timeout=5)


def own_traffic(request: str) -> bool:
    """Whether it is the browser's own (updates, sign-in), which a page cannot cause here."""
    return any(host in request for host in ("google.com", "googleapis.com", "gvt1.com", "gstatic.com"))


def test_the_views_are_drawn_and_nothing_is_fetched(tmp_path: Path) -> None:
    page = write_report(measured(), tmp_path / "report.html")
    with recording_proxy() as (proxy, asked):
        seen = browse(page, proxy)
    assert [r for r in asked if not own_traffic(r)] == []
    views = measured().views
    assert views is not None
    page_seen = Page(seen)
    assert len(page_seen.all("canvas")) >= 3 * (len(views.heads) + 1), "three runs: a canvas per head and one enlarged"
    assert all(text in page_seen.text for text in ("Head Selector", "Positive Bound", "Samples per page"))
    assert all(f">{head}</h4>" in seen for head in views.heads)
    assert '<th scope="col"><button type="button">component</button>' in seen, "tables can be sorted"


def test_the_proxy_would_have_seen_a_request(tmp_path: Path) -> None:
    page = tmp_path / "control.html"
    page.write_text(f'<!DOCTYPE html><title>x</title><img src="http://{CANARY}/a.png"><p>here')
    with recording_proxy() as (proxy, asked):
        browse(page, proxy)
    assert any(CANARY in request for request in asked)


def test_the_policy_stops_what_would_be_fetched(tmp_path: Path) -> None:
    page = write_report(measured(), tmp_path / "report.html")
    source = page.read_text(encoding="utf-8")
    outside = f'<img src="http://{CANARY}/a.png"><script>document.title = "pwned"</script>'
    page.write_text(source.replace("</main>", outside + "</main>"), encoding="utf-8")
    with recording_proxy() as (proxy, asked):
        seen = browse(page, proxy)
    assert not any(CANARY in request for request in asked)
    assert "<title>pwned" not in seen


def test_hostile_prompts_do_nothing(tmp_path: Path) -> None:
    page = write_report(evil_run(), tmp_path / "evil.html")
    seen = browse(page)
    parsed = Page(seen)
    assert not parsed.all("img") and not any("onerror" in attributes for _, attributes in parsed.elements)
    assert parsed.text.startswith("\n" + EVIL), "the title is the text it was given, not what the text would do"
    assert parsed.all("canvas"), "the views are drawn all the same"
    assert EVIL_IMAGE in parsed.text


NASTY = (
    f"</script>\u2028\u2029]]>'\"`</style></title></textarea><img/src=//{CANARY}/a.png/onerror=pwned()>"
    f"<link/rel=stylesheet/href=http://{CANARY}/b.css><style>@import'//{CANARY}/c.css'</style>&lt;img&gt;"
    f"<iframe/src=http://{CANARY}/d></iframe><svg/onload=pwned()><script>document.title='pwned'</script>"
    f"<meta/http-equiv='refresh'/content='0;url=http://{CANARY}/e'><base/href='//{CANARY}/'><a/href='//{CANARY}'>"
    "${pwned()}$_{{pwned()}}\\u003c<!--<script>"
)
"""A token without spaces: circuitsvis writes tokens as markup, and white space within them as something else."""


def nasty_pages(folder: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Path]:
    """Every page that the package writes, of texts that want out; components, metrics and solvers included."""
    monkeypatch.setattr(render_cases, "EVIL", NASTY)
    monkeypatch.setattr(render_cases, "EVIL_IMAGE", NASTY[::-1] + NASTY)
    found = evil_run()
    assert found.views is not None
    named = [mt.Component(c.kind, c.layer, c.index, NASTY, c.site) for c in found.circuit.components]
    groups = mt.HookGroups(tuple(named), tuple((c,) for c in named), found.circuit.groups.sizes)
    facts = {
        **found.circuit.provenance,
        "metric": NASTY,
        "metric_unit": NASTY,
        "solver": {"name": NASTY},
        NASTY: [NASTY],
    }
    heads = [f"{head} {NASTY}" for head in found.views.heads]
    effect = SideEffect(NASTY, NASTY, NASTY, *(mt.Score.of([0.0, 0.5, 1.0]),) * 4)
    found = replace(
        found,
        circuit=replace(found.circuit, groups=groups, provenance=facts),
        path=replace(found.path, provenance=facts, notes=(NASTY,)),
        others=(),
        views=replace(found.views, heads=heads, neurons=[NASTY] * len(found.views.neurons)),
        side_effects=SideEffects(tuple(named), NASTY, NASTY, (effect,), (NASTY,), facts),
    )
    grid = made(words=(NASTY, " b", " c", " d"), answer=NASTY, notes=(NASTY,), provenance=facts)
    shown = Shown(found.views, NASTY)
    (folder / "frame.html").write_text(f"<!DOCTYPE html><title>n</title>{shown._repr_html_()}", encoding="utf-8")
    return {
        "frame": folder / "frame.html",
        "report": write_report(found, folder / "report.html"),
        "shown": shown.save(folder / "shown.html"),
        "trace": grid.show().save(folder / "trace.html"),
    }


@pytest.mark.slow
def test_no_page_lets_a_text_out_or_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pages = nasty_pages(tmp_path, monkeypatch)
    with recording_proxy() as (proxy, asked):
        for name, page in pages.items():
            seen = browse(page, proxy)
            parsed = Page(seen)
            assert not any(key.startswith("on") for _, attributes in parsed.elements for key in attributes), name
            assert not [tag for tag in ("img", "link", "base", "object", "embed") if parsed.all(tag)], name
            assert len(parsed.all("meta")) <= 4 and not [a for a in parsed.all("a") if CANARY in str(a)], name
            assert "<title>pwned" not in seen and (name == "frame" or CANARY in parsed.text), name
    assert [r for r in asked if not own_traffic(r)] == []


def test_the_notebook_frame_draws_its_views(tmp_path: Path) -> None:
    known = run()
    page = tmp_path / "notebook.html"
    shown = show(known.circuit, known.tracer, prompts(), examples=1)
    page.write_text(shown.html, encoding="utf-8")
    assert browse(page).count("<canvas") > 0
    framed = tmp_path / "framed.html"
    framed.write_text("<!DOCTYPE html><title>n</title>" + shown._repr_html_(), encoding="utf-8")
    picture = tmp_path / "framed.png"
    profile = tmp_path / "profile-framed"
    command = [str(CHROMIUM), *FLAGS.split(), f"--user-data-dir={profile}", "--virtual-time-budget=8000"]
    command.append("--disable-features=IsolateSandboxedIframes")  # or the picture is taken before the frame is drawn
    options = [f"--screenshot={picture}", "--window-size=1000,1200", framed.as_uri()]
    subprocess.run([*command, *options], capture_output=True, timeout=120, check=True)
    assert _blue_pixels(picture) > 500, "attention weights of 1 are drawn in blue"


def test_tokens_that_look_like_markup_are_seen(tmp_path: Path) -> None:
    page = made(words=("<s>", "<b>bold", "&lt;", " d")).show().save(tmp_path / "trace.html")
    seen = Page(re.sub(r"<script.*?</script>", "", browse(page), flags=re.DOTALL))
    assert not seen.all("s") and not seen.all("b")
    assert all(token in seen.text.replace("\u2060", "") for token in ("<s>", "<b>bold*", "&lt;*"))


def _blue_pixels(picture: Path) -> int:
    from matplotlib.image import imread

    red, green, blue = imread(picture)[..., :3].transpose(2, 0, 1)
    return int(((red < 0.2) & (green < 0.2) & (blue > 0.9)).sum())
