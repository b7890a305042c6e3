"use strict";
const data = JSON.parse(document.getElementById("data").textContent);
const tables = [...document.querySelectorAll("table")];
const dialog = document.getElementById("row");
document.querySelector(".tools").hidden = false;

function element(tag, text) {
  const made = document.createElement(tag);
  if (text !== undefined) made.textContent = text;  // never as markup
  return made;
}

function list(pairs) {
  const made = element("dl");
  for (const [name, value] of pairs) made.append(element("dt", name), element("dd", value));
  return made;
}

// Sorting: numbers high to low first, text from A; missing cells stay last.
function sort(table, column, header) {
  const text = header.classList.contains("text");
  const was = header.getAttribute("aria-sort");
  const first = header.dataset.first;
  const now = was === "none" ? first : was === "ascending" ? "descending" : "ascending";
  for (const other of table.tHead.rows[0].cells) other.setAttribute("aria-sort", "none");
  header.setAttribute("aria-sort", now);
  const sign = now === "ascending" ? 1 : -1;
  const key = (row) => row.cells[column].dataset.sort;
  const rows = [...table.tBodies[0].rows].sort((a, b) => {
    const [x, y] = [key(a), key(b)];
    if (x === "" || y === "") return (x === "") - (y === "");
    return sign * (text ? (x < y ? -1 : x > y ? 1 : 0) : Number(x) - Number(y));
  });
  table.tBodies[0].append(...rows);
}

for (const table of tables)
  [...table.tHead.rows[0].cells].forEach((header, column) =>
    header.querySelector("button").addEventListener("click", () => sort(table, column, header)));

// The filter: every word must be in the method or another column of text.
const filter = document.getElementById("filter");
function apply() {
  const words = filter.value.toLowerCase().split(/\s+/).filter(Boolean);
  let shown = 0, all = 0;
  for (const table of tables)
    for (const row of table.tBodies[0].rows) {
      const text = [...row.querySelectorAll(".text")].map((cell) => cell.textContent).join(" ").toLowerCase();
      row.hidden = !words.every((word) => text.includes(word));
      all += 1;
      shown += !row.hidden;
    }
  document.getElementById("count").textContent = shown === all ? `${all} methods` : `${shown} of ${all} methods`;
}
filter.addEventListener("input", apply);
filter.addEventListener("keydown", (event) => {
  if (event.key === "Escape") { filter.value = ""; apply(); }
});
apply();

// Columns by name, over all tables; the first stays.
const names = new Set(tables.flatMap((table) => [...table.tHead.rows[0].cells].slice(1).map((cell) => cell.dataset.name)));
const boxes = new Map();
function apply_columns(name) {
  for (const table of tables)
    [...table.tHead.rows[0].cells].forEach((header, column) => {
      if (header.dataset.name === name)
        for (const row of table.rows) row.cells[column].hidden = !boxes.get(name).checked;
    });
  const off = [...boxes.values()].filter((box) => !box.checked).length;
  document.getElementById("shown").textContent = off ? `Columns (${off} hidden)` : "Columns";
}
for (const name of names) {
  const box = element("input"), label = element("label");
  box.type = "checkbox";
  box.checked = true;
  boxes.set(name, box);
  label.append(box, " " + name);
  box.addEventListener("change", () => apply_columns(name));
  document.getElementById("columns").append(label);
}
// Where a wide page is still too narrow, costs are hidden, the last first; on a phone the table is moved instead.
const wide = () => tables.some((table) => table.scrollWidth > table.parentElement.clientWidth + 1);
for (const name of ["memory", "time", "views", "epochs", "patches", "category", "FLOPs", "backbone"])
  if (innerWidth > 900 && boxes.has(name) && wide()) {
    boxes.get(name).checked = false;
    apply_columns(name);
  }

// A number opens its rows.
function openRows(button) {
  const [table, line, evaluation] = button.value.split(" ").map(Number);
  const found = data.tables[table].lines[line], cell = found.cells[evaluation];
  document.getElementById("row-title").textContent = `${found.label}: ${cell.evaluation}`;
  const body = document.getElementById("row-body");
  body.replaceChildren(list(cell.facts));
  for (const picture of cell.pictures) {
    const figure = element("figure"), image = element("img");
    image.src = picture.source;
    image.style.maxWidth = `${10 * picture.columns}rem`;
    image.alt = "Some test images with what was predicted of them";
    figure.append(image, element("figcaption", picture.says));
    body.append(figure);
  }
  for (const row of cell.rows) {
    body.append(element("h3", row.title), list(row.facts), element("small", "To run it again:"), element("pre", row.rerun));
  }
  body.append(element("h3", "Evaluation"), element("pre", cell.settings));
  body.append(element("h3", "Recipe"), element("pre", found.recipe));
  for (const text of found.deviations) body.append(element("p", "Differs from the paper: " + text));
  dialog.showModal();
  dialog.scrollTop = 0;
}
document.querySelector("main").addEventListener("click", (event) => {
  const button = event.target.closest("button[value]");
  if (button) openRows(button);
});
document.getElementById("close").addEventListener("click", () => dialog.close());
dialog.addEventListener("click", (event) => { if (event.target === dialog) dialog.close(); });
