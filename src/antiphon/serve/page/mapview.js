// The map's place on the page: fetching it, the name under the pointer, the card of the chosen point.

import { ask, pause } from "./api.js";
import { $, announce } from "./dom.js";
import { SoundMap } from "./map.js";
import { player } from "./player.js";
import { key, Results } from "./results.js";

const REST = 220; // milliseconds a pointer rests on a point before it plays
const POLL = 800; // milliseconds between two questions whether the map is made

// `actions`: what the card's buttons do. `on`: listens(), open() whether the map is in sight, found(id) a result or
// nothing, known(id, name), fail(error), heard(): the player's sound is known better now.
export class MapView {
  constructor(actions, on) {
    this.on = on;
    this.version = null; // of the library the map was made from
    this.loading = false;
    this.card = new Results($("map-card"), actions);
    this.map = new SoundMap($("map-canvas"), {
      hover: (index, x, y) => this.hover(index, x, y),
      choose: (index) => this.choose(index),
    });
  }

  async open({ version, files }) {
    if (this.loading || this.version === version) return;
    this.loading = true;
    try {
      const answer = await this.made();
      if (!answer) return;
      this.version = version;
      this.map.setPoints(answer.points, answer.names);
      answer.points.forEach(([id], index) => this.on.known(id, answer.names[index]));
      const shown = answer.points.length;
      const of = shown < files ? ` of ${files.toLocaleString("en")}` : "";
      $("map-summary").textContent = `${shown.toLocaleString("en")}${of} sounds`;
    } catch (error) {
      this.on.fail(error);
    } finally {
      this.loading = false;
      $("map-progress").hidden = true;
    }
  }

  // Null where nobody looks at the map any more.
  async made() {
    let answer = await ask("api/map");
    while (answer.state === "making") {
      $("map-progress").hidden = this.map.count > 0; // an older map is better than none
      $("map-progress").querySelector("progress").value = answer.done ?? 0;
      await pause(POLL);
      if (!this.on.open()) return null;
      answer = await ask("api/map", { quiet: true });
    }
    return answer;
  }

  clear() {
    this.version = null;
    this.map.setPoints([], []);
    this.choose(null);
  }

  sound(index) {
    const id = this.map.ids[index];
    const sound = this.on.found(id) ?? { id, name: this.map.names[index] };
    return { ...sound, key: key(sound) };
  }

  hover(index, x, y) {
    clearTimeout(this.resting);
    const tip = $("map-tip");
    tip.hidden = index === null;
    if (index === null) return;
    tip.textContent = this.map.names[index];
    const room = this.map.width - tip.offsetWidth - 8;
    tip.style.transform = `translate(${Math.max(8, Math.min(x + 14, room))}px, ${y > 48 ? y - 36 : y + 16}px)`;
    if (this.on.listens()) this.resting = setTimeout(() => player.play(this.sound(index)), REST);
  }

  choose(index) {
    clearTimeout(this.resting);
    if (index === null) {
      $("map-card").hidden = true;
      return this.map.mark("chosen", null);
    }
    const sound = this.sound(index);
    player.play(sound);
    this.show(sound);
  }

  async show(sound) {
    this.map.mark("chosen", sound.id);
    try {
      const whole = sound.path ? sound : { ...sound, ...(await ask(`api/files/${encodeURIComponent(sound.id)}`)) };
      if (this.map.chosen === null || this.map.ids[this.map.chosen] !== sound.id) return;
      this.card.show([whole]);
      $("map-card").hidden = false;
      announce(whole.name);
      if (player.is(sound) && !player.sound.path) {
        Object.assign(player.sound, whole);
        this.on.heard();
      }
    } catch (error) {
      this.on.fail(error);
    }
  }

  get chosen() {
    return $("map-card").hidden ? null : this.card.current;
  }
}
