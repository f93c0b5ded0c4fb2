// The line of chips above the results: what is being searched for, each part removable.

import { $, icon, make } from "./dom.js";
import { inWords } from "./filters.js";
import { mixes } from "./state.js";

// `names`: id -> name of sounds seen so far. `on`: remove(change), where change(state) takes the part out;
// hear(example); name(id) for a sound that came by a bookmark.
export function showQuery(state, { pending, names, on }) {
  const chips = [];
  const chip = (kind, label, text, without, example) => {
    chips.push(makeChip({ kind, label, text, without, example, on }));
  };
  if (state.words.trim()) chip("words", "", state.words.trim(), (s) => (s.words = ""));
  if (state.without.trim()) chip("without", "without", state.without.trim(), (s) => (s.without = ""));
  for (const kind of ["like", "unlike"]) {
    state[kind].forEach((example, place) => {
      const name = example.name ?? names.get(example.id);
      if (!name) on.name(example.id);
      chip(kind, kind, `${name ?? "…"}${part(example)}`, (s) => s[kind].splice(place, 1), example);
    });
  }
  for (const name of pending) {
    chips.push(make("li", { className: "chip pending" }, make("small", { textContent: "hearing" }), ` ${name}`));
  }
  for (const [column, text] of inWords(state.filters)) chip("filter", "", text, (s) => delete s.filters[column]);
  if (state.where) chip("filter", "where", state.where, (s) => (s.where = ""));
  $("chips").replaceChildren(...chips);
  $("query").hidden = !chips.length;
  $("balance-field").hidden = !mixes(state);
  $("balance").value = state.balance;
}

const part = ({ start, end }) => (end === undefined ? "" : ` ${start.toFixed(1)}–${end.toFixed(1)} s`);

function makeChip({ kind, label, text, without, example, on }) {
  const chip = make("li", { className: "chip" });
  chip.dataset.kind = kind;
  if (label) chip.append(make("small", { textContent: label }), " ");
  if (example) {
    const hear = make("button", { type: "button", className: "hear", textContent: text, title: `Play ${text}` });
    hear.addEventListener("click", () => on.hear(example));
    chip.append(hear);
  } else {
    chip.append(make("span", { textContent: text, title: text }));
  }
  const spoken = `Remove ${label} ${text}`;
  const remove = make("button", { type: "button", className: "remove", "aria-label": spoken }, icon("close"));
  remove.dataset.action = "remove";
  remove.addEventListener("click", () => on.remove(without));
  chip.append(remove);
  return chip;
}
