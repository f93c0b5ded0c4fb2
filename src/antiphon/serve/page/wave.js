// Waveforms on canvas: peaks, the similarity curve over them, the best moment, a chosen part and the playhead.
// A canvas is drawn only near the screen; peaks are asked for then, a few at a time, and not if it has gone again.

import { ask } from "./api.js";
import { clamp, clock } from "./dom.js";

const POINTS = 200;
const AT_ONCE = 3; // a browser opens six connections to a host; playing and searching want theirs
const KEPT = 2000;
const PITCH = 3; // CSS pixels from bar to bar
const DRAG = 4; // pixels before a press is a drag

const peaks = new Map(); // id -> {seconds, peaks}
const wanted = [];
let running = 0;

const near = new IntersectionObserver(
  (entries) => {
    for (const { target, isIntersecting } of entries) {
      target.wave.near = isIntersecting;
      if (isIntersecting) target.wave.arrive();
      else target.wave.forget();
    }
  },
  { rootMargin: "200px" },
);
const sized = new ResizeObserver((entries) => {
  for (const { target } of entries) if (target.wave.near) target.wave.resize();
});

let colours = null;
export function recolour() {
  const style = getComputedStyle(document.documentElement);
  const names = ["ink", "wave", "played", "paper", "words", "words-soft", "sound", "sound-soft", "muted", "line"];
  colours = Object.fromEntries(names.map((name) => [name, style.getPropertyValue(`--${name}`).trim()]));
  return colours;
}
export const palette = () => colours ?? recolour();

const nameOf = ({ id, upload }) => id ?? upload;
const served = (id) => ask(`api/waveform/${encodeURIComponent(id)}`, { query: { points: POINTS }, quiet: true });

// A dropped sound is not in the library: the browser itself looks at its first channel.
async function heard(file) {
  const sound = await new OfflineAudioContext(1, 1, 22050).decodeAudioData(await file.arrayBuffer());
  const samples = sound.getChannelData(0);
  const found = new Array(POINTS).fill(0);
  for (let i = 0; i < samples.length; i++) {
    const point = Math.floor((i / samples.length) * POINTS);
    found[point] = Math.max(found[point], Math.abs(samples[i]) * 255);
  }
  return { seconds: sound.duration, peaks: found };
}

async function next() {
  if (running >= AT_ONCE || !wanted.length) return;
  const wave = wanted.shift();
  running++;
  try {
    if (wave.canvas.isConnected) await wave.fetch();
  } catch {
    wave.asked = false; // a row without its waveform still plays; it is asked for again when it is seen again
  } finally {
    running--;
    next();
  }
}

export class Wave {
  // `levels`: the lowest and highest score on the page, so that curves of different rows can be compared.
  constructor(canvas, { onSeek, onRange }) {
    this.canvas = canvas;
    this.sound = null;
    this.near = false;
    this.at = null; // playhead in seconds
    this.pointer = null;
    this.onSeek = onSeek;
    this.onRange = onRange;
    canvas.wave = this;
    sized.observe(canvas);
    near.observe(canvas);
    this.listen();
  }

  show(sound, levels) {
    this.sound = sound;
    this.levels = levels;
    this.data = peaks.get(nameOf(sound)) ?? null;
    this.asked = false;
    if (this.near) this.arrive();
  }

  arrive() {
    this.resize();
    this.load();
  }

  load() {
    if (!this.sound || this.data || this.asked) return;
    this.asked = true;
    wanted.push(this);
    next();
  }

  forget() {
    const place = wanted.indexOf(this);
    if (place < 0) return;
    wanted.splice(place, 1);
    this.asked = false;
  }

  async fetch() {
    const { sound } = this;
    const data = peaks.get(nameOf(sound)) ?? (await (sound.file ? heard(sound.file) : served(sound.id)));
    peaks.set(nameOf(sound), data);
    if (peaks.size > KEPT) peaks.delete(peaks.keys().next().value);
    if (nameOf(this.sound) === nameOf(sound)) {
      this.data = data;
      this.draw();
    }
  }

  get seconds() {
    return this.sound?.seconds || this.data?.seconds || 1;
  }

  resize() {
    const { clientWidth, clientHeight } = this.canvas;
    if (!clientWidth) return;
    const ratio = Math.min(devicePixelRatio || 1, 2);
    this.canvas.width = Math.round(clientWidth * ratio);
    this.canvas.height = Math.round(clientHeight * ratio);
    this.ratio = ratio;
    this.draw();
  }

  draw() {
    if (!this.sound || !this.near || !this.ratio) return;
    const context = this.canvas.getContext("2d");
    const [width, height] = [this.canvas.width / this.ratio, this.canvas.height / this.ratio];
    context.setTransform(this.ratio, 0, 0, this.ratio, 0, 0);
    context.clearRect(0, 0, width, height);
    const paint = { context, width, height, colours: palette(), x: (seconds) => (seconds / this.seconds) * width };
    this.drawPart(paint);
    this.drawBars(paint);
    this.drawCurve(paint);
    this.drawPlayhead(paint);
    this.drawPointer(paint);
  }

  drawPart({ context, height, colours, x }) {
    const { start, end, range } = this.sound;
    const [from, to] = range ?? [start, end];
    if (from === undefined || to === undefined || (!range && to - from >= this.seconds * 0.98)) return;
    const [left, right] = [x(from), Math.max(x(Math.min(to, this.seconds)), x(from) + 2)];
    context.fillStyle = range ? colours["sound-soft"] : colours["words-soft"];
    context.beginPath();
    context.roundRect(left, 0, right - left, height, 3);
    context.fill();
  }

  drawBars({ context, width, height, colours, x }) {
    const middle = height / 2;
    const played = this.at === null ? -1 : x(this.at);
    const values = this.data?.peaks ?? [];
    const loudest = Math.max(24, ...values); // a silent file stays flat
    const count = Math.max(1, Math.floor(width / PITCH));
    for (let bar = 0; bar < count; bar++) {
      const from = Math.floor((bar / count) * values.length);
      const to = Math.max(from + 1, Math.floor(((bar + 1) / count) * values.length));
      let peak = 0;
      for (let i = from; i < to && i < values.length; i++) peak = Math.max(peak, values[i]);
      const half = Math.max(0.5, (peak / loudest) ** 0.8 * (middle - 1));
      context.fillStyle = bar * PITCH < played ? colours.played : colours.wave;
      context.fillRect(bar * PITCH, middle - half, PITCH - 1, 2 * half);
    }
  }

  drawCurve({ context, width, height, colours, x }) {
    const curve = this.sound.curve;
    if (!this.levels || !(curve?.length > 1)) return; // one window says nothing about time
    const [low, high] = this.levels;
    const y = (score) => height - 3 - clamp((score - low) / (high - low || 1), 0, 1) * (height - 6);
    const line = new Path2D();
    line.moveTo(0, y(curve[0][1]));
    for (const [seconds, score] of curve) line.lineTo(x(seconds), y(score));
    line.lineTo(width, y(curve.at(-1)[1]));
    context.lineJoin = "round";
    context.strokeStyle = colours.paper;
    context.lineWidth = 3.5;
    context.globalAlpha = 0.75;
    context.stroke(line);
    context.globalAlpha = 1;
    context.strokeStyle = colours.words;
    context.lineWidth = 1.5;
    context.stroke(line);
    const best = curve.reduce((a, b) => (b[1] > a[1] ? b : a));
    context.fillStyle = colours.words;
    context.beginPath();
    context.arc(clamp(x(best[0]), 3, width - 3), y(best[1]), 3, 0, 7);
    context.fill();
  }

  drawPlayhead({ context, height, colours, x }) {
    if (this.at === null) return;
    context.fillStyle = colours.sound;
    context.fillRect(Math.round(x(this.at)) - 0.75, 0, 1.5, height);
  }

  drawPointer({ context, width, height, colours }) {
    if (this.pointer === null) return;
    context.fillStyle = colours.muted;
    context.fillRect(this.pointer, 0, 1, height);
    const seconds = (this.pointer / width) * this.seconds;
    const text = this.seconds < 60 ? seconds.toFixed(1) : clock(seconds);
    context.font = "11px system-ui, sans-serif";
    const wide = context.measureText(text).width;
    const left = this.pointer + 5 + wide > width ? this.pointer - 5 - wide : this.pointer + 5;
    context.lineWidth = 3;
    context.strokeStyle = colours.paper;
    context.strokeText(text, left, 11);
    context.fillStyle = colours.ink;
    context.fillText(text, left, 11);
  }

  moment(event) {
    const box = this.canvas.getBoundingClientRect();
    return clamp((event.clientX - box.left) / box.width, 0, 1) * this.seconds;
  }

  // A press is "play from here", a drag is "this part".
  listen() {
    let pressed = null;
    const { canvas } = this;
    canvas.addEventListener("pointerdown", (event) => {
      if (event.button || !this.sound) return;
      pressed = { x: event.clientX, moment: this.moment(event), dragged: false };
      canvas.setPointerCapture(event.pointerId);
    });
    canvas.addEventListener("pointermove", (event) => {
      if (!this.sound) return;
      if (event.pointerType === "mouse") this.pointer = event.clientX - canvas.getBoundingClientRect().left;
      if (pressed && Math.abs(event.clientX - pressed.x) > DRAG) pressed.dragged = true;
      if (pressed?.dragged && this.onRange) {
        this.sound.range = [pressed.moment, this.moment(event)].sort((a, b) => a - b);
      }
      this.draw();
    });
    canvas.addEventListener("pointerup", (event) => {
      if (!pressed) return;
      const { moment, dragged } = pressed;
      pressed = null;
      if (dragged && this.onRange) this.onRange(this.sound);
      else this.onSeek(this.sound, dragged ? this.moment(event) : moment);
      this.draw();
    });
    canvas.addEventListener("pointercancel", () => (pressed = null));
    canvas.addEventListener("pointerleave", () => {
      this.pointer = null;
      this.draw();
    });
  }
}
