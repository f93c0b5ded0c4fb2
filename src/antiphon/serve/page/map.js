// The map: every sound a point on one canvas. A frame is drawn only when something changed; points are found by a grid.

import { clamp } from "./dom.js";
import { palette } from "./wave.js";

const CELLS = 128; // the grid's side
const REACH = 14; // pixels from a point that still mean it
const FURTHEST = 400; // times the whole map
const EDGE = 28; // pixels left free around it
const ROUND = 4000; // up to so many points are drawn as dots, more as pixels
const LABELS = 40; // names are written once so few points are in sight

export class SoundMap {
  // `on`: hover(index or null, x, y), choose(index or null).
  constructor(canvas, on) {
    this.canvas = canvas;
    this.on = on;
    this.view = { x: 0.5, y: 0.5, zoom: 1 }; // the middle of the screen, in the map's own units
    this.hits = new Map(); // id -> place among the results
    this.hovered = this.chosen = this.sounding = null;
    this.pressed = new Map();
    this.setPoints([], []);
    new ResizeObserver(() => this.resize()).observe(canvas);
    this.listen();
  }

  setPoints(points, names) {
    this.count = points.length;
    this.ids = points.map((point) => point[0]);
    this.xs = Float32Array.from(points, (point) => point[1]);
    this.ys = Float32Array.from(points, (point) => point[2]);
    this.names = names;
    this.byId = new Map(this.ids.map((id, index) => [id, index]));
    this.cells = new Map();
    for (let i = 0; i < this.count; i++) {
      const cell = this.cell(this.xs[i], this.ys[i]);
      if (!this.cells.has(cell)) this.cells.set(cell, []);
      this.cells.get(cell).push(i);
    }
    this.hovered = this.chosen = this.sounding = null;
    this.redraw();
  }

  cell(x, y) {
    const place = (value) => clamp(Math.floor(value * CELLS), 0, CELLS - 1);
    return place(y) * CELLS + place(x);
  }

  setHits(ids) {
    this.hits = new Map();
    for (const [place, id] of ids.entries()) if (!this.hits.has(id)) this.hits.set(id, place);
    this.redraw();
  }

  mark(name, id) {
    const index = id === null ? null : (this.byId.get(id) ?? null);
    if (this[name] === index) return;
    this[name] = index;
    this.redraw();
  }

  resize() {
    const { clientWidth, clientHeight } = this.canvas;
    if (!clientWidth) return;
    this.ratio = Math.min(devicePixelRatio || 1, 2);
    [this.width, this.height] = [clientWidth, clientHeight];
    this.canvas.width = Math.round(clientWidth * this.ratio);
    this.canvas.height = Math.round(clientHeight * this.ratio);
    this.pixels = new Pixels(this.canvas.width, this.canvas.height);
    this.redraw();
  }

  // The map fills the screen, a wide one wider, but never stretched more than so.
  get scale() {
    const [wide, high] = [Math.max(this.width - 2 * EDGE, 50), Math.max(this.height - 2 * EDGE, 50)];
    const most = 1.6 * Math.min(wide, high);
    return { x: Math.min(wide, most) * this.view.zoom, y: Math.min(high, most) * this.view.zoom };
  }

  toScreen(index) {
    const { x, y } = this.scale;
    return [(this.xs[index] - this.view.x) * x + this.width / 2, (this.ys[index] - this.view.y) * y + this.height / 2];
  }

  pick(screenX, screenY) {
    const scale = this.scale;
    const x = (screenX - this.width / 2) / scale.x + this.view.x;
    const y = (screenY - this.height / 2) / scale.y + this.view.y;
    const [dx, dy] = [REACH / scale.x, REACH / scale.y];
    const side = (value) => clamp(Math.floor(value * CELLS), 0, CELLS - 1);
    let [best, nearest] = [null, REACH ** 2];
    for (let row = side(y - dy); row <= side(y + dy); row++) {
      for (let column = side(x - dx); column <= side(x + dx); column++) {
        for (const i of this.cells.get(row * CELLS + column) ?? []) {
          const distance = ((this.xs[i] - x) * scale.x) ** 2 + ((this.ys[i] - y) * scale.y) ** 2;
          const closer = this.hits.has(this.ids[i]) ? distance * 0.5 : distance; // a result wins a tie
          if (distance < REACH ** 2 && closer < nearest) [best, nearest] = [i, closer];
        }
      }
    }
    return best;
  }

  zoomBy(factor, screenX = this.width / 2, screenY = this.height / 2) {
    const before = this.scale;
    const zoom = clamp(this.view.zoom * factor, 0.8, FURTHEST);
    const [x, y] = [screenX - this.width / 2, screenY - this.height / 2];
    const kept = zoom / this.view.zoom;
    this.view.x += (x / before.x) * (1 - 1 / kept);
    this.view.y += (y / before.y) * (1 - 1 / kept);
    this.view.zoom = zoom;
    this.keepInside();
  }

  pan(dx, dy) {
    const scale = this.scale;
    this.view.x -= dx / scale.x;
    this.view.y -= dy / scale.y;
    this.keepInside();
  }

  keepInside() {
    this.view.x = clamp(this.view.x, 0, 1);
    this.view.y = clamp(this.view.y, 0, 1);
    this.redraw();
  }

  fit() {
    this.view = { x: 0.5, y: 0.5, zoom: 1 };
    this.redraw();
  }

  // Only moves where the point is out of sight.
  reveal(id) {
    const index = this.byId.get(id);
    if (index === undefined || !this.width) return;
    const [x, y] = this.toScreen(index);
    if (x > 40 && x < this.width - 40 && y > 40 && y < this.height - 40) return;
    [this.view.x, this.view.y] = [this.xs[index], this.ys[index]];
    this.redraw();
  }

  redraw() {
    if (this.waiting) return;
    this.waiting = true;
    requestAnimationFrame(() => {
      this.waiting = false;
      if (this.width) this.draw();
    });
  }

  draw() {
    const context = this.canvas.getContext("2d");
    const colours = palette();
    context.setTransform(this.ratio, 0, 0, this.ratio, 0, 0);
    context.clearRect(0, 0, this.width, this.height);
    const seen = this.drawPoints(context, colours);
    const hits = this.drawHits(context, colours);
    if (!seen.length && this.count) {
      context.font = "14px system-ui, sans-serif";
      context.textAlign = "center";
      context.fillStyle = colours.muted;
      context.fillText("No sound lies here; 0 shows all", this.width / 2, this.height / 2);
      context.textAlign = "left";
    }
    const labelled = seen.length <= LABELS ? seen : hits.slice(0, 8);
    this.drawNames(context, colours, labelled);
    this.drawRing(context, this.chosen, colours.ink);
    this.drawRing(context, this.sounding, colours.sound);
    this.drawRing(context, this.hovered, colours.ink);
  }

  // Few points are dots. Many are written into the pixels themselves: twenty thousand shapes are too many for the
  // canvas to fill at the screen's own rate, and so dense places can grow darker.
  drawPoints(context, colours) {
    const { x: sx, y: sy } = this.scale;
    const [ox, oy] = [this.width / 2 - this.view.x * sx, this.height / 2 - this.view.y * sy];
    const { xs, ys, count, width, height } = this;
    const many = count > ROUND;
    const size = clamp(6.5 - Math.log10(count || 1) + Math.log2(this.view.zoom) * 0.7, 1.8, 7);
    const alpha = (many ? 0.6 : 1) * (this.hits.size ? 0.55 : 0.75);
    if (many) this.pixels.begin(colours.muted, Math.round(size * this.ratio), alpha);
    const seen = [];
    context.beginPath();
    for (let i = 0; i < count; i++) {
      const x = xs[i] * sx + ox;
      const y = ys[i] * sy + oy;
      if (x < -size || y < -size || x > width + size || y > height + size) continue;
      if (seen.length <= LABELS) seen.push(i);
      if (many) {
        this.pixels.add(x * this.ratio, y * this.ratio);
      } else {
        context.moveTo(x + size / 2, y);
        context.arc(x, y, size / 2, 0, 7);
      }
    }
    if (many) {
      context.putImageData(this.pixels.image, 0, 0);
      return seen;
    }
    context.globalAlpha = alpha;
    context.fillStyle = colours.muted;
    context.fill();
    context.globalAlpha = 1;
    return seen;
  }

  drawHits(context, colours) {
    const drawn = [...this.hits.keys()].map((id) => this.byId.get(id)).filter((index) => index !== undefined);
    for (let place = drawn.length - 1; place >= 0; place--) {
      const [x, y] = this.toScreen(drawn[place]);
      context.beginPath();
      context.arc(x, y, place < 10 ? 5 : 3.5, 0, 7);
      context.fillStyle = colours.words;
      context.fill();
      context.lineWidth = 1.5;
      context.strokeStyle = colours.paper;
      context.stroke();
    }
    return drawn;
  }

  drawNames(context, colours, indices) {
    const taken = [];
    context.font = "12px system-ui, sans-serif";
    context.lineWidth = 3;
    context.lineJoin = "round";
    for (const index of indices) {
      const [x, y] = this.toScreen(index);
      const name = shorten(this.names[index] ?? "");
      const wide = context.measureText(name).width;
      const left = x + 12 + wide > this.width ? x - 9 - wide : x + 9;
      const box = [left - 2, y - 8, left + wide + 4, y + 8];
      const meets = (other) => box[0] < other[2] && box[2] > other[0] && box[1] < other[3] && box[3] > other[1];
      if (taken.some(meets)) continue;
      taken.push(box);
      context.strokeStyle = colours.paper;
      context.strokeText(name, left, y + 4);
      context.fillStyle = this.hits.has(this.ids[index]) ? colours.ink : colours.muted;
      context.fillText(name, left, y + 4);
    }
  }

  drawRing(context, index, colour) {
    if (index === null) return;
    const [x, y] = this.toScreen(index);
    context.beginPath();
    context.arc(x, y, 8, 0, 7);
    context.strokeStyle = colour;
    context.lineWidth = 2;
    context.stroke();
  }

  listen() {
    const { canvas } = this;
    canvas.addEventListener("wheel", (event) => {
      event.preventDefault();
      const lines = event.deltaMode === 1 ? 16 : 1;
      this.zoomBy(2 ** (-event.deltaY * lines * (event.ctrlKey ? 0.01 : 0.0025)), ...this.place(event));
    }, { passive: false });
    canvas.addEventListener("pointerdown", (event) => {
      if (event.button) return;
      canvas.setPointerCapture(event.pointerId);
      this.pressed.set(event.pointerId, this.place(event));
      this.travelled = this.pressed.size > 1 ? Infinity : 0;
    });
    canvas.addEventListener("pointermove", (event) => this.moved(event));
    for (const name of ["pointerup", "pointercancel"]) {
      canvas.addEventListener(name, (event) => {
        const was = this.pressed.delete(event.pointerId);
        if (was && name === "pointerup" && this.travelled < 5) this.on.choose(this.pick(...this.place(event)));
      });
    }
    canvas.addEventListener("pointerleave", () => this.hover(null));
  }

  place(event) {
    const box = this.canvas.getBoundingClientRect();
    return [event.clientX - box.left, event.clientY - box.top];
  }

  moved(event) {
    const [x, y] = this.place(event);
    const before = this.pressed.get(event.pointerId);
    if (!before) return event.pointerType === "mouse" && this.hover(this.pick(x, y));
    if (this.pressed.size === 1) {
      this.travelled += Math.abs(x - before[0]) + Math.abs(y - before[1]);
      if (this.travelled >= 5) this.pan(x - before[0], y - before[1]);
    } else {
      this.pinch(event.pointerId, before, [x, y]);
    }
    this.pressed.set(event.pointerId, [x, y]);
    this.hover(null);
  }

  pinch(moving, before, after) {
    const [, fixed] = [...this.pressed].find(([id]) => id !== moving);
    const apart = (a) => Math.max(Math.hypot(a[0] - fixed[0], a[1] - fixed[1]), 1);
    this.pan((after[0] - before[0]) / 2, (after[1] - before[1]) / 2);
    this.zoomBy(apart(after) / apart(before), (after[0] + fixed[0]) / 2, (after[1] + fixed[1]) / 2);
  }

  hover(index) {
    this.canvas.style.cursor = index === null ? "" : "pointer";
    if (index === this.hovered) return;
    this.hovered = index;
    this.redraw();
    this.on.hover(index, ...(index === null ? [0, 0] : this.toScreen(index)));
  }
}

// Squares of one colour on an empty picture; where they lie on each other it grows denser.
class Pixels {
  constructor(width, height) {
    this.image = new ImageData(width, height);
    this.data = new Uint32Array(this.image.data.buffer);
    [this.width, this.height] = [width, height];
  }

  begin(colour, side, alpha) {
    this.data.fill(0);
    this.side = side;
    this.step = Math.round(alpha * 255);
    const [red, green, blue] = [1, 3, 5].map((at) => parseInt(colour.slice(at, at + 2), 16)); // "#rrggbb"
    this.colour = (blue << 16) | (green << 8) | red; // a pixel's bytes come lowest first
  }

  add(x, y) {
    const left = Math.round(x - this.side / 2);
    const top = Math.round(y - this.side / 2);
    const [right, bottom] = [Math.min(left + this.side, this.width), Math.min(top + this.side, this.height)];
    for (let row = Math.max(top, 0); row < bottom; row++) {
      for (let at = row * this.width + Math.max(left, 0); at < row * this.width + right; at++) {
        const opacity = Math.min((this.data[at] >>> 24) + this.step, 255);
        this.data[at] = (opacity << 24) | this.colour;
      }
    }
  }
}

const shorten = (name) => (name.length > 32 ? `${name.slice(0, 20)}…${name.slice(-11)}` : name);
