// The page: one state, written to the URL; every change of it searches again and shows what came.

import { ApiError, ask, onToken, onWaiting, useLibrary } from "./api.js";
import { $, announce, clock, copy, debounce, make, setIcon, setting, toast } from "./dom.js";
import { showEmpty } from "./empty.js";
import { Filters } from "./filters.js";
import { onSounds } from "./incoming.js";
import { onKeys } from "./keys.js";
import { MapView } from "./mapview.js";
import { player } from "./player.js";
import { showQuery } from "./query.js";
import { key, playlist, Results } from "./results.js";
import { asksForSomething, fresh, fromHash, sameExample, toHash, toRequest } from "./state.js";
import { askForToken } from "./token.js";
import { recolour, Wave } from "./wave.js";

const TYPING = 250; // milliseconds of rest before what is typed is searched for

let state = fromHash(location.hash);
let stats = null;
let results = [];
let asked = null; // the request that was answered last, or is being answered
let searching = null; // its AbortController
let typing = false; // whether the last change came from typing: such changes share one step of the history
let address = null; // the hash this page wrote last
const pending = []; // names of sounds on their way to the server
const names = new Map(); // id -> name
const uploads = new Map(); // upload -> {file, url}: the sound as this browser holds it

// ---- state, address, search

function update({ typed = false, again = false } = {}) {
  const hash = toHash(state);
  if (hash !== address) {
    const target = hash ? `#${hash}` : location.pathname + location.search;
    if (typed && typing) history.replaceState(null, "", target);
    else history.pushState(null, "", target);
    address = hash;
  }
  typing = typed;
  showState();
  search({ again });
}

function change(part) {
  Object.assign(state, part);
  update();
}

function showState() {
  for (const name of ["words", "without"]) if ($(name).value !== state[name]) $(name).value = state[name];
  document.title = state.words.trim() ? `${state.words.trim()} · Antiphon` : "Antiphon";
  filters.write(state);
  renderQuery();
  showView();
}

function renderQuery() {
  const remove = (without) => {
    without(state);
    update();
    $("words").focus();
  };
  showQuery(state, { pending, names, on: { remove, hear: hearExample, name: learnName } });
}

async function search({ again = false } = {}) {
  const request = toRequest(state);
  const text = JSON.stringify(request);
  if (!again && text === asked) return;
  asked = text;
  searching?.abort();
  const mine = (searching = new AbortController());
  if (!asksForSomething(state)) {
    show([]);
    return settle();
  }
  busy();
  try {
    const answer = await ask("api/search", { json: request, signal: mine.signal });
    if (mine !== searching) return;
    show(answer.results, answer.took_ms);
    settle();
    if (answer.version !== stats?.version) await refresh();
  } catch (error) {
    if (mine !== searching) return;
    asked = null;
    fail(error);
  }
}

function show(found, took) {
  results = found;
  for (const { id, name } of results) names.set(id, name);
  const focused = $("results").contains(document.activeElement);
  list.show(results);
  if (focused) list.current?.focus({ preventScroll: true });
  scrollTo({ top: 0 });
  mapView.map.setHits(results.map(({ id }) => id));
  showSummary(took);
  showWhyEmpty();
}

function showSummary(took) {
  const searched = asksForSomething(state);
  const counted = `${results.length} ${results.length === 1 ? "result" : "results"}`;
  const time = took === undefined ? "" : ` in ${Math.max(1, Math.round(took))} ms`;
  $("summary").textContent = searched ? counted + time : "";
  if (searched) announce(counted);
  $("export").disabled = !results.length;
  $("list").dataset.count = results.length;
}

function showWhyEmpty() {
  if (results.length) $("empty").hidden = true;
  else if (stats) showEmpty(state, stats, { say: (words) => change({ words }), clear: clearFilters });
}

function busy() {
  document.body.dataset.state = "busy";
}

function settle() {
  document.body.dataset.state = "ready";
  $("notice").hidden = true;
}

function fail(error) {
  document.body.dataset.state = "error";
  if (error instanceof ApiError) return notice(error.message, { retry: error.mayPass });
  notice(`Something went wrong in this page: ${error.message}`);
  console.error(error);
}

function notice(text, { retry = false } = {}) {
  $("notice-text").textContent = text;
  $("retry").hidden = !retry;
  $("notice").hidden = false;
}

// ---- the library

async function refresh() {
  const fromBefore = stats;
  stats = await ask("api/stats");
  if (JSON.stringify(fromBefore?.columns) !== JSON.stringify(stats.columns)) filters.build(stats.columns);
  const choice = $("library");
  choice.replaceChildren(...stats.libraries.map((name) => new Option(name)));
  choice.value = stats.library;
  choice.parentElement.hidden = stats.libraries.length < 2;
  filters.write(state);
}

async function begin() {
  busy();
  useLibrary(state.library || null);
  try {
    await refresh();
    showState();
    document.body.dataset.state = "ready";
    showWhyEmpty();
    await search({ again: true });
  } catch (error) {
    fail(error);
  }
}

function enterLibrary() {
  useLibrary(state.library || null);
  mapView.clear();
  refresh().catch(fail);
}

async function learnName(id) {
  names.set(id, "…");
  try {
    names.set(id, (await ask(`api/files/${encodeURIComponent(id)}`, { quiet: true })).name);
  } catch {
    names.set(id, id);
  }
  renderQuery();
}

function clearFilters() {
  const { filters: none, where, by, diversity, top } = fresh();
  document.activeElement?.blur();
  change({ filters: none, where, by, diversity, top });
}

// ---- what is done with a sound

const example = ({ id, start, end, range, name }) => {
  const [from, to] = range ?? [start, end];
  const round = (seconds) => Math.round(seconds * 1000) / 1000;
  return to === undefined ? { id, name } : { id, start: round(from), end: round(to), name };
};

function add(kind, sound) {
  const one = example(sound);
  const other = kind === "like" ? "unlike" : "like";
  state[other] = state[other].filter((old) => !sameExample(old, one));
  if (!state[kind].some((old) => sameExample(old, one))) state[kind].push(one);
  update();
  announce(`${kind === "like" ? "More" : "Less"} like ${sound.name}`);
}

const actions = {
  play: (sound, from) => player.play(sound, from),
  toggle: (sound) => (player.is(sound) ? player.toggle() : player.play(sound)),
  more: (sound) => add("like", sound),
  less: (sound) => add("unlike", sound),
  async copy(sound, row) {
    const done = await copy(sound.path);
    toast(done ? "Path copied" : "This browser does not let the page copy");
    const button = row?.querySelector('[data-action="copy"]');
    if (!done || !button) return;
    setIcon(button, "check");
    setTimeout(() => setIcon(button, "copy"), 1400);
  },
  range(sound) {
    player.play(sound);
    toast("“More like this” now means this part");
  },
  selected: (sound) => state.view === "map" && mapView.map.mark("chosen", sound?.id ?? null),
};

function hearExample(one) {
  if (!one.upload) return player.play({ ...one, name: one.name ?? names.get(one.id), key: key(one) });
  const held = uploads.get(one.upload);
  if (held) player.play({ ...one, ...held, key: one.upload });
  else toast("This sound was dropped earlier; the page no longer has it");
}

async function searchBySounds(files) {
  for (const file of files) {
    const most = stats?.max_upload_mb ?? Infinity;
    if (file.size > most * 1e6) {
      notice(`“${file.name}” is larger than the ${most} MB that this server takes; drop a shorter sound.`);
    } else {
      await searchBySound(file);
    }
  }
}

async function searchBySound(file) {
  pending.push(file.name);
  renderQuery();
  busy();
  const body = new FormData();
  body.append("sound", file, file.name);
  try {
    const { upload } = await ask("api/similar", { query: { top: 1 }, body });
    uploads.set(upload, { file, url: URL.createObjectURL(file) });
    if (!state.like.some((old) => old.upload === upload)) state.like.push({ upload, name: file.name });
    settle();
  } catch (error) {
    fail(error);
    $("retry").hidden = true; // the sound itself would have to be given again
  }
  pending.splice(pending.indexOf(file.name), 1);
  update();
}

function exportPlaylist() {
  const url = URL.createObjectURL(new Blob([playlist(results)], { type: "audio/x-mpegurl" }));
  const name = state.words.trim().replace(/[^\p{L}\p{N} _-]+/gu, "").slice(0, 60) || "antiphon";
  make("a", { href: url, download: `${name}.m3u8` }).click();
  setTimeout(() => URL.revokeObjectURL(url), 10_000);
  toast(`${results.length} paths in ${name}.m3u8`);
}

// ---- views and settings

const wide = (rem) => matchMedia(`(min-width: ${rem}rem)`).matches;

function showView() {
  const onMap = state.view === "map";
  document.body.dataset.view = state.view;
  $("list").hidden = onMap;
  $("map").hidden = !onMap;
  $("map-toggle").setAttribute("aria-pressed", onMap);
  if (onMap && stats) mapView.open(stats);
}

const toggleMap = () => change({ view: state.view === "map" ? "list" : "map" });

function showFilters(open) {
  $("filters").hidden = !open;
  $("filters-toggle").setAttribute("aria-expanded", open);
}

function toggleFilters() {
  const open = $("filters").hidden;
  showFilters(open);
  setting.set("filters", open ? "open" : "closed");
  if (open) document.querySelector('input[name="by"]:checked').focus();
  else $("filters-toggle").focus();
}

const listens = () => document.querySelector('[data-setting="listen"]').checked;

const THEMES = { auto: "as the system", light: "light", dark: "dark" };
function showTheme(theme) {
  if (theme === "auto") delete document.documentElement.dataset.theme;
  else document.documentElement.dataset.theme = theme;
  $("theme").setAttribute("aria-label", `Colours: ${THEMES[theme]}`);
  $("theme").title = `Colours: ${THEMES[theme]}`;
  recolour();
  for (const drawn of [list, mapView.card, mapView.map]) drawn.redraw();
  playerWave.draw();
}

function nextTheme() {
  const all = Object.keys(THEMES);
  const theme = all[(all.indexOf(setting.get("theme", "auto")) + 1) % all.length];
  setting.set("theme", theme === "auto" ? null : theme);
  showTheme(theme);
  toast(`Colours: ${THEMES[theme]}`);
}

// ---- the player's bar

function showPlayer() {
  const { sound, playing } = player;
  $("player").hidden = !sound;
  if (!sound) return;
  document.body.dataset.playing = playing ? sound.id ?? sound.upload : "";
  setIcon($("player-toggle"), playing ? "pause" : "play");
  $("player-toggle").setAttribute("aria-label", `${playing ? "Pause" : "Play"} ${sound.name}`);
  $("player-name").textContent = sound.name;
  $("player-folder").textContent = sound.folder ?? "";
  if (playerWave.sound !== sound) playerWave.show(sound, sound.levels);
  mapView.map.mark("sounding", playing ? sound.id ?? null : null);
  for (const rows of [list, mapView.card]) rows.playing();
  showTime();
}

function showTime() {
  const { sound, time, audio } = player;
  if (!sound) return;
  playerWave.at = player.playhead;
  playerWave.draw();
  const seconds = sound.seconds ?? (Number.isFinite(audio.duration) ? audio.duration : 0); // browsers guess at first
  const text = seconds ? `${clock(time)} / ${clock(seconds)}` : clock(time);
  if ($("player-time").textContent !== text) $("player-time").textContent = text;
  for (const rows of [list, mapView.card]) rows.heard();
}

// ---- keys

function moveTo(step) {
  const row = list.move(step);
  if (!row) return;
  if (state.view === "map") {
    mapView.map.reveal(row.sound.id);
    mapView.show(row.sound);
  } else {
    row.focus({ preventScroll: true });
    row.scrollIntoView({ block: "nearest" });
  }
  if (listens()) player.play(row.sound);
}

const onRow = (run) => () => {
  const chosen = (state.view === "map" && mapView.chosen) || list.current;
  if (chosen) run(chosen.sound, chosen);
};

const KEYS = {
  "/": () => $("words").select(), // and so to the box
  ArrowDown: () => moveTo(1),
  ArrowUp: () => moveTo(-1),
  j: () => moveTo(1),
  k: () => moveTo(-1),
  ArrowLeft: () => player.skip(-5),
  ArrowRight: () => player.skip(5),
  // What sounds is paused; else the chosen row plays.
  " ": () => (player.playing ? player.toggle() : onRow(actions.toggle)()),
  Enter: onRow(actions.more),
  u: onRow(actions.less),
  c: onRow(actions.copy),
  f: toggleFilters,
  m: toggleMap,
  "?": () => $("help").showModal(),
  "+": () => mapView.map.zoomBy(1.5),
  "=": () => mapView.map.zoomBy(1.5),
  "-": () => mapView.map.zoomBy(1 / 1.5),
  0: () => mapView.map.fit(),
};

function enterResults() {
  if (state.view === "map") moveTo(0);
  else list.current?.focus();
}

function leave(target) {
  if (target.closest("input, select, textarea")) target.blur();
  else if (!$("filters").hidden && !wide(60)) toggleFilters();
  else if (mapView.chosen) mapView.choose(null);
  const part = list.current?.sound;
  if (part?.range) {
    delete part.range;
    list.current.wave.draw();
  }
}

// ---- all of it together

const filters = new Filters(change);
const list = new Results($("results"), actions);
const mapView = new MapView({ ...actions, selected: undefined }, {
  listens,
  open: () => state.view === "map",
  found: (id) => results.find((result) => result.id === id),
  known: (id, name) => names.set(id, name),
  fail,
  heard: showPlayer,
});
const playerWave = new Wave($("player-wave"), { onSeek: (sound, from) => player.play(sound, from) });

const BUTTONS = {
  choose: () => $("file").click(),
  filters: toggleFilters,
  map: toggleMap,
  theme: nextTheme,
  help: KEYS["?"],
  retry: () => (stats ? search({ again: true }) : begin()),
  dismiss: () => ($("notice").hidden = true),
  clear: clearFilters,
  export: exportPlaylist,
  toggle: () => player.toggle(),
  skip: () => (list.current ?? $("words")).focus(),
  "zoom-in": KEYS["+"],
  "zoom-out": KEYS["-"],
  "zoom-fit": KEYS[0],
};

document.addEventListener("click", (event) => {
  const button = event.target.closest("[data-action]");
  if (button && !button.closest(".row")) BUTTONS[button.dataset.action]?.();
});
onKeys(KEYS, { leave, enter: enterResults });
onSounds(searchBySounds);

const typed = debounce(TYPING, () => update({ typed: true }));
for (const name of ["words", "without"]) {
  $(name).addEventListener("input", () => {
    state[name] = $(name).value;
    typed();
  });
  $(name).addEventListener("keydown", (event) => {
    if (event.key === "Enter" && !event.isComposing) {
      event.preventDefault();
      typed.cancel();
      update({ again: true });
      if (matchMedia("(pointer: coarse)").matches) $(name).blur(); // the screen's keyboard would hide the results
    }
  });
}
$("search").addEventListener("submit", (event) => event.preventDefault());
const balanced = debounce(150, () => update({ typed: true }));
$("balance").addEventListener("input", () => {
  state.balance = $("balance").valueAsNumber;
  balanced();
});
$("library").addEventListener("change", () => {
  state.library = $("library").value;
  // Ids hold in every library of the folder; a dropped sound was heard by the one model only.
  for (const kind of ["like", "unlike"]) state[kind] = state[kind].filter(({ upload }) => !upload);
  enterLibrary();
  update();
});

for (const box of document.querySelectorAll('[data-setting="listen"]')) {
  box.checked = setting.get("listen", "no") === "yes";
  box.addEventListener("change", () => {
    for (const other of document.querySelectorAll('[data-setting="listen"]')) other.checked = box.checked;
    setting.set("listen", box.checked ? "yes" : "no");
  });
}
player.audio.volume = Number(setting.get("volume", 1));
$("volume").value = player.audio.volume;
$("volume").addEventListener("input", () => {
  player.audio.volume = $("volume").valueAsNumber;
  setting.set("volume", $("volume").value);
});
player.addEventListener("change", showPlayer);
player.addEventListener("time", showTime);
player.addEventListener("trouble", (event) => notice(event.detail));

addEventListener("popstate", () => {
  const before = state.library;
  state = fromHash(location.hash);
  address = toHash(state);
  typing = false;
  typed.cancel();
  if (state.library !== before) enterLibrary();
  showState();
  search();
});
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => showTheme(setting.get("theme", "auto")));
new ResizeObserver(([{ target }]) => {
  document.documentElement.style.setProperty("--top", `${target.offsetHeight}px`);
}).observe($("top"));

onWaiting((seconds) => notice(`The library is busy; trying again in ${seconds} s.`));
onToken(askForToken);

showTheme(setting.get("theme", "auto"));
showFilters(wide(60) && setting.get("filters", wide(80) ? "open" : "closed") === "open");
address = toHash(state);
begin();
