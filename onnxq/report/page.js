"use strict";

// Theme: what the system prefers, until the reader chooses.
const root = document.documentElement;
const toggle = document.getElementById("theme");
const system = matchMedia("(prefers-color-scheme: dark)");
const isDark = () => (root.dataset.theme ?? (system.matches ? "dark" : "light")) === "dark";
const label = () => (toggle.textContent = isDark() ? "Light" : "Dark");
toggle.addEventListener("click", () => {
  root.dataset.theme = isDark() ? "light" : "dark";
  label();
});
system.addEventListener("change", label);
label();

// Tables: a click on a column's head sorts, a second one the other way round; what has no number comes last.
function sort(head) {
  const table = head.closest("table");
  const body = table.tBodies[0];
  const index = [...head.parentElement.children].indexOf(head);
  const numeric = head.classList.contains("n");
  const down = head.ariaSort ? head.ariaSort === "ascending" : false;
  const key = (row) => {
    const cell = row.cells[index];
    return numeric ? parseFloat(cell.dataset.key ?? "NaN") : cell.textContent;
  };
  const compare = (a, b) => {
    if (!numeric) return (down ? -1 : 1) * a.localeCompare(b, "en", { numeric: true });
    if (isNaN(a) || isNaN(b)) return isNaN(a) - isNaN(b);
    return (down ? -1 : 1) * (a - b);
  };
  const rows = [...body.rows].map((row) => [key(row), row]).sort((a, b) => compare(a[0], b[0]));
  body.append(...rows.map(([, row]) => row));
  for (const other of head.parentElement.children) other.removeAttribute("aria-sort");
  head.ariaSort = down ? "descending" : "ascending";
}
for (const button of document.querySelectorAll("th button")) {
  button.addEventListener("click", () => sort(button.parentElement));
}

// A search field shows the rows of the table behind it that hold what was typed.
for (const field of document.querySelectorAll("input[type=search]")) {
  const rows = [...field.nextElementSibling.querySelectorAll("tbody tr")];
  field.addEventListener("input", () => {
    const wanted = field.value.toLowerCase();
    for (const row of rows) row.hidden = !row.textContent.toLowerCase().includes(wanted);
  });
}
