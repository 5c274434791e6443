"use strict";
// Draws the circuitsvis views, names their controls for screen readers, and lets tables be sorted.
(() => {
  const drawn = new WeakSet();
  // What a mouse can choose in a view: a head, or a value to colour by.
  const CHOICES = ":scope.AttentionHeads > div > h3:first-child + div > div > div, :scope.ColoredTokensMulti > div > div:first-child > div";

  function label(root, title) {
    root.querySelectorAll("select, input").forEach((control) => {
      if (control.getAttribute("aria-label")) return;
      const named = control.closest("div").querySelector("label");
      control.setAttribute("aria-label", named ? named.textContent.replace(":", "") : `Setting of: ${title}`);
    });
    root.querySelectorAll(CHOICES).forEach((choice) => {
      if (choice.tabIndex === 0) return;
      choice.tabIndex = 0;
      choice.setAttribute("role", "button");
      choice.addEventListener("keydown", (event) => {
        if (event.key !== "Enter" && event.key !== " ") return;
        event.preventDefault();
        choice.click();
      });
    });
    root.querySelectorAll("canvas").forEach((canvas) => {
      canvas.setAttribute("role", "img");
      canvas.setAttribute("aria-label", title);
    });
  }

  // A view is drawn when its part of the page is open: a chart measures the space it has.
  function draw(within) {
    if (typeof CircuitsVis === "undefined") return;
    within.querySelectorAll('script[type="application/json"][data-view]').forEach((data) => {
      const place = document.getElementById(data.dataset.for);
      const closed = place.closest("details:not([open])");
      if (closed || drawn.has(place)) return;
      drawn.add(place);
      const title = place.getAttribute("aria-label");
      const finish = () => { label(place, title); pannable(place); };
      new MutationObserver(finish).observe(place, { childList: true, subtree: true });
      CircuitsVis.render(place.id, CircuitsVis[data.dataset.view], JSON.parse(data.textContent));
    });
  }

  function key(row, column) {
    const cell = row.cells[column];
    return cell.dataset.v === undefined ? cell.textContent : Number(cell.dataset.v);
  }

  function compare(a, b) {
    if (typeof a === "number" && typeof b === "number") return a - b;
    if (typeof a === "number") return 1;
    if (typeof b === "number") return -1;
    return a.localeCompare(b, undefined, { numeric: true });
  }

  function sort(table, column, heading) {
    const down = heading.getAttribute("aria-sort") === "descending";
    const body = table.tBodies[0];
    const rows = Array.from(body.rows);
    rows.sort((a, b) => (down ? 1 : -1) * compare(key(a, column), key(b, column)));
    body.append(...rows);
    table.querySelectorAll("th[aria-sort]").forEach((th) => th.removeAttribute("aria-sort"));
    heading.setAttribute("aria-sort", down ? "ascending" : "descending");
  }

  function sortable(table) {
    Array.from(table.tHead.rows[0].cells).forEach((heading, column) => {
      const button = document.createElement("button");
      button.type = "button";
      button.textContent = heading.textContent;
      button.addEventListener("click", () => sort(table, column, heading));
      heading.replaceChildren(button);
    });
  }

  // What does not fit can be panned with the keyboard, and only then stops the tab key.
  function pannable(box) {
    if (box.scrollWidth > box.clientWidth) box.tabIndex = 0;
    else box.removeAttribute("tabindex");
  }

  function fit() {
    document.querySelectorAll(".pan, .view").forEach(pannable);
  }

  document.querySelectorAll("table[data-sort]").forEach(sortable);
  window.addEventListener("resize", fit);
  document.querySelectorAll("details").forEach((part) => part.addEventListener("toggle", () => { draw(part); fit(); }));
  window.addEventListener("beforeprint", () => {
    document.querySelectorAll("details").forEach((part) => { part.open = true; });
    draw(document);
  });
  draw(document);
  fit();
})();
