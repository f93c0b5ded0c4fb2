// Results as rows; the same row serves as the card of a point of the map.

import { downloadURL } from "./api.js";
import { $, length, make, percent, setIcon, titleOf } from "./dom.js";
import { OWN } from "./incoming.js";
import { player } from "./player.js";
import { Wave } from "./wave.js";

const TYPES = {
  wav: "audio/wav", mp3: "audio/mpeg", flac: "audio/flac", ogg: "audio/ogg", opus: "audio/ogg", m4a: "audio/mp4",
  aif: "audio/aiff", aiff: "audio/aiff", au: "audio/basic",
};

// A file may come more than once where every window is a result.
export const key = (result) => `${result.id}@${result.start ?? ""}`;

// `actions`: play(sound, from), toggle(sound), more(sound), less(sound), copy(sound, row), range(sound) after a part
// was chosen, and perhaps selected(sound or null).
export class Results {
  constructor(list, actions) {
    this.list = list;
    this.actions = actions;
    this.rows = [];
    this.selected = -1;
    list.addEventListener("click", (event) => this.clicked(event));
    list.addEventListener("focusin", (event) => this.select(this.rows.indexOf(event.target.closest(".row"))));
    list.addEventListener("dragstart", dragOut);
  }

  show(results) {
    const levels = range(results);
    const best = Math.max(...results.map((result) => result.score), 1e-9);
    this.rows = results.map((result, place) => this.row(result, { levels, best, place, of: results.length }));
    this.selected = -1;
    this.list.replaceChildren(...this.rows);
    this.select(results.length ? 0 : -1);
    this.playing();
  }

  row(result, { levels, best, place, of }) {
    const row = $("row-template").content.firstElementChild.cloneNode(true);
    const sound = { ...result, key: key(result), levels };
    row.sound = sound;
    row.dataset.id = sound.id;
    const part = (name) => row.querySelector(name);
    const fit = sound.percentile === undefined ? null : `closer than ${percent(sound.percentile)} % of the library`;
    part(".name").textContent = sound.name;
    part(".name").title = sound.path ?? sound.name;
    part(".sub").append(...describe(sound));
    part(".sub").title = part(".sub").textContent;
    part(".length").textContent = length(sound.seconds);
    if (sound.percentile !== undefined) {
      part(".percentile").textContent = `${percent(sound.percentile)} %`;
      part(".fit").title = `${fit}; similarity ${sound.score.toFixed(3)}`;
      part(".score i").style.width = `${Math.max(0, (100 * sound.score) / best)}%`;
    }
    part(".score").hidden = sound.percentile === undefined;
    part('[data-action="download"]').href = downloadURL(sound.id);
    const spoken = { more: "More like", less: "Less like", copy: "Copy the path of", download: "Download" };
    for (const [action, words] of Object.entries(spoken)) {
      part(`[data-action="${action}"]`).setAttribute("aria-label", `${words} ${sound.name}`);
    }
    const about = [sound.name, sound.folder || "top folder", length(sound.seconds), fit].filter(Boolean);
    row.setAttribute("aria-label", `${place + 1} of ${of}: ${about.join(", ")}`);
    row.wave = new Wave(part("canvas"), {
      onSeek: (chosen, from) => this.actions.play(chosen, from),
      onRange: (chosen) => this.actions.range(chosen),
    });
    row.wave.show(sound, levels);
    return row;
  }

  clicked(event) {
    const row = event.target.closest(".row");
    const action = event.target.closest("[data-action]")?.dataset.action;
    if (!row || action === "download") return;
    this.select(this.rows.indexOf(row));
    if (action === "play") this.actions.toggle(row.sound);
    else if (action) this.actions[action](row.sound, row);
    else if (event.target.tagName !== "CANVAS") row.focus({ preventScroll: true });
  }

  get current() {
    return this.rows[this.selected] ?? null;
  }

  select(index) {
    if (index === this.selected) return;
    for (const [old, chosen] of [[this.current, false], [this.rows[index], true]]) {
      if (!old) continue;
      old.tabIndex = chosen ? 0 : -1;
      if (chosen) old.setAttribute("aria-current", "true");
      else old.removeAttribute("aria-current");
    }
    this.selected = index;
    this.actions.selected?.(this.current?.sound ?? null);
  }

  move(step) {
    if (!this.rows.length) return null;
    this.select(Math.min(Math.max(this.selected + step, 0), this.rows.length - 1));
    return this.current;
  }

  // Buttons and playheads follow the player.
  playing() {
    for (const row of this.rows) {
      const here = player.is(row.sound);
      const runs = here && player.playing;
      if (row.runs !== runs) {
        row.runs = runs;
        const button = row.querySelector('[data-action="play"]');
        setIcon(button, runs ? "pause" : "play");
        button.setAttribute("aria-label", `${runs ? "Pause" : "Play"} ${row.sound.name}`);
        row.toggleAttribute("data-playing", runs);
      }
      if (!here && row.wave.at !== null) {
        row.wave.at = null;
        row.wave.draw();
      }
    }
    this.heard();
  }

  heard() {
    const row = player.sound && this.rows.find(({ sound }) => player.is(sound));
    if (!row) return;
    row.wave.at = player.playhead;
    row.wave.draw();
  }

  redraw() {
    for (const row of this.rows) row.wave.draw();
  }
}

function describe({ folder, tags = {} }) {
  const parts = folder ? [make("span", { className: "folder", textContent: folder })] : [];
  for (const [name, value] of Object.entries(tags)) {
    if (value === null || value === "") continue;
    const textContent = typeof value === "number" ? `${titleOf(name)} ${value}` : String(value);
    parts.push(make("span", { className: "tag", textContent, title: titleOf(name) }));
  }
  return parts;
}

function range(results) {
  const scores = results.flatMap(({ curve, score }) => [...(curve ?? []).map((point) => point[1]), score]);
  return scores.length ? [Math.min(...scores), Math.max(...scores)] : null;
}

// Out of the window into a folder, a sampler or another program.
function dragOut(event) {
  const row = event.target.closest(".row");
  const under = document.elementFromPoint(event.clientX, event.clientY);
  if (!row || under?.tagName === "CANVAS") return event.preventDefault(); // there a drag chooses a part
  const { name, path, id } = row.sound;
  const address = new URL(downloadURL(id), document.baseURI).href;
  const type = TYPES[name.split(".").at(-1).toLowerCase()] ?? "application/octet-stream";
  event.dataTransfer.effectAllowed = "copy";
  event.dataTransfer.setData("DownloadURL", `${type}:${name.replaceAll(":", "_")}:${address}`);
  event.dataTransfer.setData("text/uri-list", address);
  event.dataTransfer.setData("text/plain", path ?? address);
  event.dataTransfer.setData(OWN, id);
}

// #EXTM3U with the paths as the server knows them, so that any player on that machine opens it.
export function playlist(results) {
  const line = (text) => String(text).replace(/[\r\n]+/g, " ");
  const entry = ({ seconds, name, path }) => `#EXTINF:${Math.round(seconds)},${line(name)}\n${line(path)}\n`;
  return `#EXTM3U\n${results.map(entry).join("")}`;
}
