"use strict";
// The data come from trees that anybody may have written: everything is shown by textContent, never as HTML.
const data = JSON.parse(document.getElementById("data").textContent);
const byId = (id) => document.getElementById(id);
const SELECTS = ["round", "category", "submitter", "benchmark", "scenario"];
const ALL = "";
const LESS_IS_BETTER = new Set(["ms", "s"]);
const collator = new Intl.Collator("en", { numeric: true, sensitivity: "base" });
const state = { tab: 0, sort: { key: "submitter", down: false }, opened: new Set() };

function make(name, options = {}, ...children) {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(options)) {
    if (key === "text") made.textContent = value;
    else if (key === "class") made.className = value;
    else if (key === "on") made.addEventListener("click", value);
    else if (value !== null && value !== undefined && value !== false) made.setAttribute(key, value);
  }
  made.append(...children.filter((child) => child !== null));
  return made;
}

// Rows and columns

const text = (value) => (value === null || value === undefined ? "" : String(value));
const capital = (word) => word.charAt(0).toUpperCase() + word.slice(1);

data.rows.forEach((row, id) => {
  row.id = id;
  row.tab = row.suite + "\u0000" + row.division;
  row.cells = new Map(row.results.map((one) => [one.benchmark + "\u0000" + one.scenario, one]));
  row.words = [row.submitter, row.system, row.system_id, row.processor, row.accelerator, row.software,
    row.operating_system, row.model_used, row.notes, row.category, row.round,
    ...row.results.map((one) => one.benchmark + " " + one.model)].join("\n").toLowerCase();
});
const tabs = [...new Set(data.rows.map((row) => row.tab))];

function chosen() {
  const wanted = Object.fromEntries(SELECTS.map((name) => [name, byId(name).value]));
  const words = byId("text").value.toLowerCase().split(/\s+/).filter(Boolean);
  const keeps = (one) => (!wanted.benchmark || one.benchmark === wanted.benchmark)
    && (!wanted.scenario || one.scenario === wanted.scenario) && (!byId("power").checked || one.power);
  const narrow = wanted.benchmark || wanted.scenario || byId("power").checked;
  const rows = data.rows.filter((row) => row.tab === tabs[state.tab]
    && (!wanted.round || row.round === wanted.round) && (!wanted.category || row.category === wanted.category)
    && (!wanted.submitter || row.submitter === wanted.submitter)
    && words.every((word) => row.words.includes(word)) && (!narrow || row.results.some(keeps)));
  return { rows, keeps };
}

function columnsOf(rows, keeps) {
  const found = new Map();
  for (const row of rows) {
    for (const one of row.results.filter(keeps)) {
      const key = one.benchmark + "\u0000" + one.scenario;
      const column = found.get(key) || { key, benchmark: one.benchmark, scenario: one.scenario, units: new Set(), least: Infinity, whole: true };
      if (one.unit) column.units.add(one.unit);
      if (one.value !== null) {
        column.least = Math.min(column.least, Math.abs(one.value));
        column.whole = column.whole && Number.isInteger(one.value);
      }
      found.set(key, column);
    }
  }
  const place = (column) => { const at = data.scenarios.indexOf(column.scenario); return at < 0 ? 99 : at; };
  return [...found.values()].sort((a, b) => collator.compare(a.benchmark, b.benchmark) || place(a) - place(b));
}

function decimalsOf(least, whole) {
  if (whole) return 0;
  return least >= 10 ? 2 : least >= 1 ? 3 : 4;
}

function number(value, decimals) {
  return value.toLocaleString("en-US", { minimumFractionDigits: decimals, maximumFractionDigits: decimals });
}

const anyNumber = (value) => number(value, decimalsOf(Math.abs(value), Number.isInteger(value)));

// Sorting

const COUNTS = { processor: "processors", accelerator: "accelerators" };

function sortValue(row, key) {
  if (row.cells.has(key)) return row.cells.get(key).value;
  if (key.includes("\u0000")) return null;
  return row[key] === "" || row[key] === undefined ? null : row[key];
}

function compare(a, b) {
  const { key, down } = state.sort;
  const [one, other] = [sortValue(a, key), sortValue(b, key)];
  if (one === null || other === null) return (one === null) - (other === null) || a.id - b.id; // the empty last
  let order = typeof one === "number" && typeof other === "number" ? one - other : collator.compare(one, other);
  if (!order && COUNTS[key]) order = (a[COUNTS[key]] || 0) - (b[COUNTS[key]] || 0);
  return (down ? -order : order) || a.id - b.id;
}

function sortBy(key, numeric, units) {
  const better = numeric && !(units && [...units].some((unit) => LESS_IS_BETTER.has(unit)));
  state.sort = state.sort.key === key ? { key, down: !state.sort.down } : { key, down: better };
  show();
  const button = [...document.querySelectorAll(".sort")].find((one) => one.dataset.key === key);
  if (button) button.focus({ preventScroll: true });
}

function sorter(label, key, numeric = false, units = null) {
  const on = state.sort.key === key;
  const made = make("button", { type: "button", class: "sort" + (on ? (state.sort.down ? " down" : " up") : ""),
    title: "Sort by " + label, on: () => sortBy(key, numeric, units) });
  made.textContent = label;
  made.dataset.key = key;
  return made;
}

const sortedAs = (...keys) => (keys.includes(state.sort.key) ? (state.sort.down ? "descending" : "ascending") : null);

// The table

function fixedColumns(rows, open) {
  const any = (test) => rows.some(test);
  return [
    any((row) => row.nodes !== null && row.nodes !== 1) && { key: "nodes", label: "Nodes", numeric: true, minor: true },
    new Set(data.rows.map((row) => row.round)).size > 1 && { key: "round", label: "Round" },
    { key: "processor", label: "Processor", count: "processors", minor: any((row) => row.accelerator) },
    any((row) => row.accelerator) && { key: "accelerator", label: "Accelerator", count: "accelerators" },
    { key: "software", label: "Software", minor: true },
    open && { key: "model_used", label: "Model used" },
  ].filter(Boolean);
}

const classOf = (one) => [one.numeric ? "num" : "words", one.minor ? "minor" : ""].join(" ").trim();

function headOf(fixed, columns) {
  const tall = columns.length ? 2 : 1;
  const first = make("tr", {}, make("th", { class: "first", rowspan: tall, scope: "col", "aria-sort": sortedAs("submitter", "system") },
    make("div", { class: "both" }, sorter("Submitter", "submitter"), sorter("System", "system"))));
  for (const one of fixed) {
    first.append(make("th", { rowspan: tall, scope: "col", class: classOf(one), "aria-sort": sortedAs(one.key) },
      sorter(one.label, one.key, one.numeric)));
  }
  const second = make("tr");
  columns.forEach((column, at) => {
    const begins = at === 0 || columns[at - 1].benchmark !== column.benchmark;
    const span = columns.filter((one) => one.benchmark === column.benchmark).length;
    if (begins) first.append(make("th", { class: "bench", colspan: span, scope: "colgroup", text: column.benchmark }));
    second.append(make("th", { class: "num" + (begins ? " start" : ""), scope: "col", "aria-sort": sortedAs(column.key) },
      sorter(column.scenario, column.key, true, column.units),
      make("span", { class: "unit", text: [...column.units].join(", ") || "\u00a0" })));
  });
  first.append(make("th", { rowspan: tall, scope: "col", text: "Links", class: "start" }));
  return columns.length ? [first, second] : [first];
}

function resultCell(row, column, begins) {
  const cell = make("td", { class: "num" + (begins ? " start" : "") });
  const one = row.cells.get(column.key);
  if (!one) return cell;
  if (one.value === null) cell.append(make("span", { class: "gone", text: one.valid === false ? "INVALID" : "no result" }));
  else cell.append(number(one.value, decimalsOf(column.least, column.whole)) + (column.units.size > 1 ? " " + one.unit : ""));
  if (one.inferred_from) cell.append(make("span", { class: "mark inferred", text: "i", title: "inferred from " + one.inferred_from }));
  if (one.remarks.length) cell.append(make("span", { class: "mark bad", text: "!", title: one.remarks.join("\n") }));
  if (one.power) cell.append(make("span", { class: "under watts", text: anyNumber(one.power.value) + " " + one.power.unit }));
  if (byId("accuracy").checked) cell.append(...one.shown_accuracy.map((told) => make("span", { class: "under", text: told })));
  return cell;
}

const linksOf = (row) => [["details", row.details], ["code", row.code]].filter(([, to]) => to)
  .map(([name, to]) => make("a", { href: to, text: name, rel: "noopener noreferrer" }));

function rowOf(row, fixed, columns) {
  const isOpen = state.opened.has(row.id);
  const button = make("button", { type: "button", class: "open", "aria-expanded": String(isOpen),
    "aria-label": "Details of " + row.submitter + " " + row.system, on: () => toggle(row, columns, fixed) });
  button.dataset.row = row.id;
  const who = make("div", {}, make("strong", { text: row.submitter }),
    row.remarks.length ? make("span", { class: "mark bad", text: "!", title: row.remarks.join("\n") }) : null,
    make("span", { class: "under", text: row.system }));
  const made = make("tr", { class: "row" }, make("th", { class: "first", scope: "row" }, make("div", { class: "who" }, button, who)));
  for (const one of fixed) {
    const told = text(row[one.key]);
    if (one.numeric) made.append(make("td", { class: classOf(one), text: told }));
    else {
      const by = one.count && told && row[one.count] !== null ? make("span", { class: "by", text: row[one.count] + " × " }) : null;
      made.append(make("td", { class: classOf(one) }, make("div", { class: "clamp", title: told }, ...[by, told].filter(Boolean))));
    }
  }
  columns.forEach((column, at) => made.append(resultCell(row, column, at === 0 || columns[at - 1].benchmark !== column.benchmark)));
  made.append(make("td", { class: "links start" }, ...linksOf(row)));
  return isOpen ? [made, moreOf(row, fixed.length + columns.length + 2)] : [made];
}

function moreOf(row, span) {
  const list = make("dl");
  const tell = (name, value) => { if (value) list.append(make("dt", { text: name }), make("dd", {}, ...[value].flat())); };
  tell("System", row.system + (row.system_id === row.system ? "" : " (" + row.system_id + ")"));
  tell("Round", [row.round, row.suite, row.division, row.category].join(", "));
  tell("Nodes", text(row.nodes));
  tell("Processors", row.processor && text(row.processors) + " × " + row.processor + (row.processor_cores ? ", " + row.processor_cores + " cores each" : ""));
  tell("Accelerators", row.accelerator && text(row.accelerators) + " × " + row.accelerator);
  tell("Software", row.software);
  tell("Operating system", row.operating_system);
  tell("Model used", row.model_used);
  tell("Notes", row.notes);
  tell("Links", linksOf(row));
  const problems = row.remarks.length ? make("ul", {}, ...row.remarks.map((one) => make("li", { text: one }))) : null;
  const heads = ["Benchmark", "Scenario", "Result", "Measured as", "Accuracy", "Power", "Weights", "Remarks"];
  const body = make("tbody");
  for (const one of row.results) {
    const result = one.value === null ? (one.valid === false ? "INVALID" : "no result") : anyNumber(one.value) + " " + one.unit;
    const told = [one.inferred_from ? "inferred from " + one.inferred_from : "", ...one.remarks].filter(Boolean).join("; ");
    body.append(make("tr", {}, make("td", { text: one.benchmark }), make("td", { text: one.scenario }),
      make("td", { class: "num" + (one.value === null ? " gone" : ""), text: result }), make("td", { text: one.metric }),
      make("td", { text: one.shown_accuracy.join(", ") }), make("td", { class: "num", text: one.power ? anyNumber(one.power.value) + " " + one.power.unit : "" }),
      make("td", { text: one.weight_data_types }), make("td", { class: "remarks", text: told })));
  }
  const table = make("table", {}, make("thead", {}, make("tr", {}, ...heads.map((name) => make("th", { scope: "col", text: name })))), body);
  return make("tr", { class: "more" }, make("td", { colspan: span }, make("div", { class: "inner" }, problems, table, list)));
}

function toggle(row) {
  if (!state.opened.delete(row.id)) state.opened.add(row.id);
  show();
  const button = document.querySelector('.open[data-row="' + row.id + '"]');
  if (button) button.focus({ preventScroll: true });
}

function show() {
  const { rows, keeps } = chosen();
  const columns = columnsOf(rows, keeps);
  const fixed = fixedColumns(rows, (tabs[state.tab] || "").endsWith("\u0000open"));
  const table = byId("table");
  table.replaceChildren(make("thead", {}, ...headOf(fixed, columns)));
  for (const category of data.categories.filter((name) => rows.some((row) => row.category === name))) {
    const some = rows.filter((row) => row.category === category).sort(compare);
    table.append(make("tbody", {},
      make("tr", { class: "category" }, make("th", { colspan: fixed.length + columns.length + 2, scope: "rowgroup" },
        make("span", { text: capital(category) + " · " + some.length }))),
      ...some.flatMap((row) => rowOf(row, fixed, columns))));
  }
  byId("frame").hidden = !rows.length;
  byId("none").hidden = Boolean(rows.length);
  const results = rows.reduce((sum, row) => sum + row.results.filter(keeps).length, 0);
  byId("count").textContent = count(rows.length, "row") + ", " + count(results, "result");
  [...byId("tabs").children].forEach((tab, at) => tab.setAttribute("aria-pressed", String(at === state.tab)));
}

const count = (n, what) => number(n, 0) + " " + what + (n === 1 ? "" : "s");

// Controls

function fill(name) {
  const select = byId(name);
  const before = select.value;
  const rows = data.rows.filter((row) => row.tab === tabs[state.tab]);
  const values = name === "benchmark" || name === "scenario" ? rows.flatMap((row) => row.results.map((one) => one[name])) : rows.map((row) => row[name]);
  const distinct = [...new Set(values)].sort(collator.compare);
  select.replaceChildren(make("option", { value: ALL, text: "All" }), ...distinct.map((value) => make("option", { value, text: name === "category" ? capital(value) : value })));
  select.value = distinct.includes(before) ? before : ALL;
  if (name === "round") select.parentElement.hidden = new Set(data.rows.map((row) => row.round)).size < 2;
}

function open(at) {
  state.tab = at;
  SELECTS.forEach(fill);
  show();
}

tabs.forEach((tab, at) => {
  const [suite, division] = tab.split("\u0000");
  byId("tabs").append(make("button", { type: "button", on: () => open(at) }, capital(suite) + " · " + capital(division),
    make("span", { class: "n", text: String(data.rows.filter((row) => row.tab === tab).length) })));
});
SELECTS.forEach((name) => byId(name).addEventListener("change", show));
["accuracy", "power"].forEach((name) => byId(name).addEventListener("change", show));
let typing = 0;
byId("text").addEventListener("input", () => { clearTimeout(typing); typing = setTimeout(show, 80); });
byId("filters").addEventListener("submit", (event) => event.preventDefault());
byId("clear").addEventListener("click", () => {
  byId("filters").reset();
  state.opened.clear();
  state.sort = { key: "submitter", down: false };
  open(state.tab);
});
byId("more").addEventListener("click", () => {
  byId("more").setAttribute("aria-expanded", String(byId("more").getAttribute("aria-expanded") !== "true"));
});
const THEMES = { "": "Auto", light: "Light", dark: "Dark" };
byId("theme").addEventListener("click", () => {
  const names = Object.keys(THEMES);
  const next = names[(names.indexOf(document.documentElement.dataset.theme || "") + 1) % names.length];
  document.documentElement.dataset.theme = next;
  byId("theme").textContent = THEMES[next];
  byId("theme").setAttribute("aria-label", "Colours: " + (next || "as the system has them"));
});
open(0);
