"use strict";
// What a mark says, shown at the pointer, under a finger, or step by step with the arrow keys.
for (const plot of document.querySelectorAll(".plot")) {
  const marks = JSON.parse(plot.dataset.marks);
  if (!marks.length) continue;
  const drawing = plot.querySelector("svg");
  const cursor = document.createElementNS("http://www.w3.org/2000/svg", "circle");
  const tip = document.createElement("div");
  cursor.setAttribute("class", "cursor");
  cursor.setAttribute("r", 8);
  tip.className = "tip";
  tip.setAttribute("role", "status");
  cursor.style.display = tip.style.display = "none";
  drawing.append(cursor);
  plot.append(tip);
  plot.tabIndex = 0;
  plot.setAttribute("role", "group");
  plot.setAttribute("aria-label", "Chart with " + marks.length + " points; arrow keys step through them");
  let current = -1;

  function show(index) {
    current = index;
    const [x, y, words] = marks[index];
    const box = drawing.getBoundingClientRect(), frame = plot.getBoundingClientRect();
    cursor.setAttribute("cx", x + "%");
    cursor.setAttribute("cy", y + "%");
    tip.textContent = words;
    cursor.style.display = tip.style.display = "";
    const left = box.left - frame.left + x / 100 * box.width, top = y / 100 * box.height;
    const beside = left + 14 + tip.offsetWidth <= frame.width ? left + 14 : left - 14 - tip.offsetWidth;
    tip.style.left = Math.max(0, Math.min(beside, frame.width - tip.offsetWidth)) + "px";
    // Where the words find no room beside the mark (a phone), they stand above or below it.
    const covers = beside < 0;
    const above = top - tip.offsetHeight - 14;
    tip.style.top = (covers ? (above > -60 ? above : top + 14) : Math.max(-8, top - tip.offsetHeight / 2)) + "px";
  }
  function hide() {
    current = -1;
    cursor.style.display = tip.style.display = "none";
  }
  function point(event) {
    const box = drawing.getBoundingClientRect();
    let best = -1, least = plot.dataset.nearest === "x" ? Infinity : 48;
    marks.forEach(([x, y], index) => {
      const across = box.left + x / 100 * box.width - event.clientX;
      const down = box.top + y / 100 * box.height - event.clientY;
      const far = plot.dataset.nearest === "x" ? Math.abs(across) + Math.abs(down) / 1e4 : Math.hypot(across, down);
      if (far < least) [best, least] = [index, far];
    });
    if (best < 0) hide();
    else if (best !== current) show(best);
  }
  plot.addEventListener("pointermove", point);
  plot.addEventListener("pointerdown", point);
  // A finger that lifts leaves too: what it tapped stays to be read until something else is tapped.
  plot.addEventListener("pointerleave", event => { if (event.pointerType === "mouse") hide(); });
  document.addEventListener("pointerdown", event => { if (!plot.contains(event.target)) hide(); });
  plot.addEventListener("blur", hide);
  plot.addEventListener("keydown", event => {
    const step = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 }[event.key];
    if (event.key === "Escape") hide();
    if (!step) return;
    event.preventDefault();
    show(((current < 0 && step < 0 ? 0 : current) + step + marks.length) % marks.length);
  });
}

// Tables that are sorted by a click on a title; the second click turns the order round.
for (const table of document.querySelectorAll("table.sortable")) {
  const body = table.tBodies[0];
  const titles = [...table.tHead.rows[0].cells];
  titles.forEach((title, column) => {
    const button = document.createElement("button");
    button.textContent = title.textContent;
    title.replaceChildren(button);
    button.addEventListener("click", () => {
      const down = title.getAttribute("aria-sort") === "ascending";
      titles.forEach(other => other.removeAttribute("aria-sort"));
      title.setAttribute("aria-sort", down ? "descending" : "ascending");
      const value = row => {
        const cell = row.cells[column];
        return "value" in cell.dataset ? Number(cell.dataset.value) : cell.textContent;
      };
      const rows = [...body.rows].sort((a, b) => {
        const [left, right] = [value(a), value(b)];
        if (typeof left !== typeof right) return typeof left === "number" ? -1 : 1;  // numbers first
        const order = typeof left === "number" ? left - right : left.localeCompare(right, "en", { numeric: true });
        return down ? -order : order;
      });
      body.append(...rows);
    });
  });
}

addEventListener("beforeprint", () => document.querySelectorAll("details").forEach(part => { part.open = true; }));
