"use strict";
for (const table of document.querySelectorAll("table.results")) {
  const heads = [...table.tHead.rows[0].cells];
  const key = (row, column) => {
    const text = row.cells[column].dataset.value;
    return text === undefined ? null : Number.isNaN(Number(text)) ? text.toLowerCase() : Number(text);
  };
  heads.forEach((head, column) => head.addEventListener("click", () => {
    const up = head.getAttribute("aria-sort") === "descending" || (column === 0 && !head.hasAttribute("aria-sort"));
    heads.forEach((other) => other.removeAttribute("aria-sort"));
    head.setAttribute("aria-sort", up ? "ascending" : "descending");
    const rows = [...table.tBodies[0].rows];
    rows.sort((a, b) => {
      const [x, y] = [key(a, column), key(b, column)];
      if (x === null || y === null) return (x === null) - (y === null); // what is missing stays at the end
      return (x < y ? -1 : x > y ? 1 : 0) * (up ? 1 : -1);
    });
    table.tBodies[0].append(...rows);
  }));
}
for (const tabs of document.querySelectorAll(".tabs")) {
  const panels = [...tabs.children];
  const bar = document.createElement("div");
  bar.className = "tab-buttons";
  const show = (chosen) => panels.forEach((panel, i) => {
    panel.hidden = i !== chosen;
    bar.children[i].setAttribute("aria-pressed", String(i === chosen));
  });
  panels.forEach((panel, i) => {
    const button = document.createElement("button");
    button.type = "button";
    button.textContent = panel.dataset.tab;
    button.addEventListener("click", () => show(i));
    bar.append(button);
  });
  tabs.prepend(bar);
  show(0);
}
const zoom = document.getElementById("zoom");
document.addEventListener("click", (event) => {
  const image = event.target;
  if (zoom.open) { zoom.close(); return; }
  if (!(image instanceof HTMLImageElement)) return;
  const caption = document.createElement("figcaption");
  caption.textContent = image.alt;
  const large = image.cloneNode();
  zoom.firstElementChild.replaceChildren(large, caption);
  zoom.showModal();
});
const links = new Map([...document.querySelectorAll("nav a")].map((a) => [a.hash.slice(1), a]));
const seen = new IntersectionObserver((entries) => {
  for (const entry of entries) {
    if (!entry.isIntersecting || !links.has(entry.target.id)) continue;
    links.forEach((a) => a.classList.remove("here"));
    links.get(entry.target.id).classList.add("here");
  }
}, { rootMargin: "-15% 0px -80% 0px" });
document.querySelectorAll("header[id], section[id]").forEach((part) => seen.observe(part));
