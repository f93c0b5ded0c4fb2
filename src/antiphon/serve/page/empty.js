// What stands where results would: what can be done here, or why nothing came.

import { $, make } from "./dom.js";
import { asksForSomething } from "./state.js";

const EXAMPLES = ["rain on a tin roof", "deep dark organ, slow", "one short bright click", "crowd far away"];

const line = (tag, text) => make(tag, { textContent: text });
const button = (text, onclick) => make("button", { type: "button", textContent: text, onclick });
const key = (name) => make("kbd", { textContent: name });

// `on`: say(words), clear().
export function showEmpty(state, stats, on) {
  const narrowed = Object.keys(state.filters).length > 0 || state.where !== "";
  let content;
  if (!stats.files) content = emptyLibrary();
  else if (!asksForSomething(state)) content = welcome(stats, on.say);
  else content = narrowed ? nothingPasses(on.clear) : nothing();
  $("empty").replaceChildren(...content);
  $("empty").hidden = false;
}

function welcome({ files, hours, name }, say) {
  const long = hours >= 10 ? Math.round(hours) : Math.round(hours * 10) / 10;
  const size = `${files.toLocaleString("en")} sounds, ${long.toLocaleString("en")} hours, in ${name}.`;
  return [
    line("h2", "What should it sound like?"),
    line("p", `${size} Say it in words, or drop a sound here to find others like it.`),
    make("div", { className: "examples" }, ...EXAMPLES.map((words) => button(words, () => say(words)))),
    make("p", { className: "note" }, key("/"), " search  ", key("m"), " map  ", key("?"), " all keys"),
  ];
}

const emptyLibrary = () => [
  line("h2", "This library is empty"),
  line("p", "Run “antiphon index” on a folder of sounds, then search here."),
];

const nothing = () => [line("h2", "Nothing fits"), line("p", "Try other words, or leave out “without”.")];

const nothingPasses = (clear) => [
  line("h2", "Nothing fits"),
  line("p", "No sound of the library passes these filters."),
  button("Clear the filters", clear),
];
