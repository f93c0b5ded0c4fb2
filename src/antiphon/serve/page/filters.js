// The panel of filters, built from the library's own columns. It writes into the state's fields and says so.

import { ask } from "./api.js";
import { $, debounce, make, titleOf } from "./dom.js";

const FIRST = [{ name: "path", kind: "text" }, { name: "seconds", kind: "number" }];
const INNER = ["id", "start_seconds", "end_seconds", "mtime_ns", "size", "comment"]; // for SQL alone

export class Filters {
  // `changed(part)`: called with what the panel now says.
  constructor(changed) {
    this.fields = new Map(); // column -> its inputs
    const later = debounce(300, () => changed(this.read()));
    const form = $("filters-form");
    form.addEventListener("submit", (event) => event.preventDefault());
    form.addEventListener("input", (event) => {
      this.showDiversity();
      if (event.target.id !== "where") later(); // half an SQL expression is only ever an error
    });
    form.addEventListener("change", () => {
      later.cancel();
      changed(this.read());
    });
    $("where").addEventListener("keydown", (event) => {
      if (event.key !== "Enter" || event.shiftKey) return;
      event.preventDefault();
      changed(this.read());
    });
  }

  build(columns) {
    const placed = [...INNER, ...FIRST.map(({ name }) => name)];
    const others = columns.filter(({ name, empty }) => !empty && !placed.includes(name));
    this.fields.clear();
    $("columns").replaceChildren(...[...FIRST, ...others].map((column) => this.field(column)));
    $("where-columns").textContent = `Columns: ${columns.map(({ name }) => name).join(", ")}`;
  }

  field({ name, kind }) {
    const title = titleOf(name);
    if (kind === "number") {
      const [min, max] = ["min", "max"].map((end) =>
        make("input", { type: "number", step: "any", placeholder: end, "aria-label": `${title}: ${end}` }),
      );
      this.fields.set(name, { min, max });
      const ends = make("span", { className: "ends" }, min, make("span", { textContent: "to" }), max);
      const box = make("div", { className: "field", role: "group", "aria-label": title }, caption(title), ends);
      box.dataset.column = name;
      return box;
    }
    const contains = make("input", { type: "search", placeholder: "contains", spellcheck: false, maxLength: 200 });
    this.fields.set(name, { contains });
    const box = make("label", { className: "field" }, caption(title), contains);
    if (name !== "path") box.append(suggestions(name, contains)); // whole paths would not help to name a folder
    box.dataset.column = name;
    return box;
  }

  read() {
    const filters = {};
    for (const [name, { min, max, contains }] of this.fields) {
      if (contains?.value.trim()) filters[name] = { contains: contains.value.trim() };
      const ends = {};
      if (min?.value) ends.min = min.valueAsNumber;
      if (max?.value) ends.max = max.valueAsNumber;
      if (Object.keys(ends).length) filters[name] = ends;
    }
    return {
      filters,
      where: $("where").value.trim(),
      by: document.querySelector('input[name="by"]:checked').value,
      diversity: $("diversity").valueAsNumber,
      top: Number($("count").value),
    };
  }

  write(state) {
    for (const [name, inputs] of this.fields) {
      for (const [end, input] of Object.entries(inputs)) {
        const value = String(state.filters[name]?.[end] ?? "");
        if (input.value !== value && document.activeElement !== input) input.value = value;
      }
    }
    if (document.activeElement !== $("where")) $("where").value = state.where;
    document.querySelector(`input[name="by"][value="${state.by}"]`).checked = true;
    $("diversity").value = state.diversity;
    const count = $("count");
    if (![...count.options].some((option) => option.value === String(state.top))) count.add(new Option(state.top));
    count.value = state.top;
    this.showDiversity();
    const used = Object.keys(state.filters).length + Boolean(state.where);
    $("filters-count").textContent = used;
    $("filters-count").hidden = !used;
  }

  showDiversity() {
    const value = $("diversity").valueAsNumber;
    $("diversity-value").textContent = value ? value.toFixed(2) : "off";
  }
}

const caption = (text) => make("span", { textContent: text });

function suggestions(column, input) {
  const list = make("datalist", { id: `suggest-${column.replace(/\W/g, "-")}` });
  input.setAttribute("list", list.id);
  let latest = 0;
  const fill = async () => {
    const mine = ++latest;
    try {
      const { values } = await ask("api/suggest", { query: { column, prefix: input.value }, quiet: true });
      if (mine === latest) list.replaceChildren(...values.map((value) => make("option", { value: String(value) })));
    } catch {
      // a column without suggestions is typed by hand
    }
  };
  input.addEventListener("focus", fill, { once: true });
  input.addEventListener("input", debounce(200, fill));
  return list;
}

// The filters in few words, for the chips: [column, text].
export const inWords = (filters) =>
  Object.entries(filters).map(([name, { min, max, contains }]) => {
    if (contains !== undefined) return [name, `${titleOf(name)}: ${contains}`];
    if (min === undefined) return [name, `${titleOf(name)} ≤ ${max}`];
    return [name, max === undefined ? `${titleOf(name)} ≥ ${min}` : `${titleOf(name)} ${min} – ${max}`];
  });
