// The player: one sound at a time, from a moment on. It says what happens by events: "change" and "time".

import { audioURL } from "./api.js";
import { clamp } from "./dom.js";

class Player extends EventTarget {
  constructor() {
    super();
    this.audio = new Audio();
    this.audio.preload = "auto";
    this.sound = null; // {id, key, name, folder, seconds, start, ...} or {upload, url, name}
    this.goal = null; // where to play from, as long as the sound can't be sought in yet
    for (const name of ["play", "pause", "ended"]) {
      this.audio.addEventListener(name, () => this.changed());
    }
    this.audio.addEventListener("play", () => this.tick());
    this.audio.addEventListener("seeked", () => this.dispatchEvent(new Event("time")));
    this.audio.addEventListener("loadedmetadata", () => this.arrive());
    this.audio.addEventListener("error", () => this.failed());
  }

  get playing() {
    return !this.audio.paused && !this.audio.ended;
  }

  // Null once it has run out: the playhead is gone then.
  get playhead() {
    return this.audio.ended ? null : this.time;
  }

  get time() {
    return this.goal ?? this.audio.currentTime;
  }

  is(sound) {
    return this.sound !== null && this.sound.key === sound.key;
  }

  play(sound, from = sound.range?.[0] ?? sound.start ?? 0) {
    if (!this.is(sound)) {
      this.sound = sound;
      this.audio.src = sound.url ?? audioURL(sound.id);
    }
    this.sound = sound;
    this.seek(from);
    this.resume();
  }

  // A sound that waits at its end starts again from its best moment.
  toggle() {
    if (!this.sound) return;
    if (this.playing) this.audio.pause();
    else if (this.audio.ended || this.audio.error) this.play(this.sound);
    else this.resume();
  }

  resume() {
    this.audio.play().catch((error) => {
      if (error.name === "NotAllowedError") this.say("The browser wants a click before it plays a sound.");
    });
    this.changed();
  }

  seek(seconds) {
    const end = this.audio.duration || this.sound?.seconds || Infinity;
    const goal = clamp(seconds, 0, Math.max(0, end - 0.05));
    this.goal = this.audio.readyState ? null : goal;
    if (this.audio.readyState) this.audio.currentTime = goal;
    this.dispatchEvent(new Event("time"));
  }

  skip(seconds) {
    if (this.sound) this.seek(this.time + seconds);
  }

  arrive() {
    if (this.goal !== null) this.seek(this.goal);
  }

  tick() {
    if (!this.playing) return;
    this.dispatchEvent(new Event("time"));
    requestAnimationFrame(() => this.tick());
  }

  failed() {
    if (!this.sound) return;
    this.goal = null;
    this.say(`“${this.sound.name}” can't be played here; download it instead.`);
    this.changed();
  }

  say(text) {
    this.dispatchEvent(new CustomEvent("trouble", { detail: text }));
  }

  changed() {
    this.dispatchEvent(new Event("change"));
  }
}

export const player = new Player();
