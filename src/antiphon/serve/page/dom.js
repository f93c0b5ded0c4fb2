// Small helpers. Text from the server only ever goes in as text nodes.

export const $ = (id) => document.getElementById(id);

export function make(tag, properties = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (name in element) element[name] = value;
    else element.setAttribute(name, value);
  }
  element.append(...children);
  return element;
}

export function icon(name) {
  const svg = document.createElementNS("http://www.w3.org/2000/svg", "svg");
  svg.setAttribute("class", "i");
  svg.setAttribute("aria-hidden", "true");
  const use = document.createElementNS("http://www.w3.org/2000/svg", "use");
  use.setAttribute("href", `#i-${name}`);
  svg.append(use);
  return svg;
}

export const setIcon = (button, name) => button.querySelector("use").setAttribute("href", `#i-${name}`);

// One line for screen readers, which see nothing of canvases.
export const announce = (text) => ($("live").textContent = text);

let toastTimer;
export function toast(text) {
  const element = $("toast");
  element.textContent = text;
  element.hidden = false;
  announce(text);
  clearTimeout(toastTimer);
  toastTimer = setTimeout(() => (element.hidden = true), 1800);
}

export function debounce(milliseconds, run) {
  let timer;
  const later = (...args) => {
    clearTimeout(timer);
    timer = setTimeout(() => run(...args), milliseconds);
  };
  later.cancel = () => clearTimeout(timer);
  return later;
}

export const clamp = (x, low, high) => Math.min(Math.max(x, low), high);

const two = (n) => String(n).padStart(2, "0");

// 5.0 s, 1:05, 1:02:05
export function length(seconds) {
  if (seconds < 60) return `${seconds.toFixed(1)} s`;
  return clock(seconds);
}

export function clock(seconds) {
  const whole = Math.floor(seconds);
  const [hours, minutes] = [Math.floor(whole / 3600), Math.floor(whole / 60) % 60];
  return hours ? `${hours}:${two(minutes)}:${two(whole % 60)}` : `${minutes}:${two(whole % 60)}`;
}

// A column's name for people: bpm -> BPM, my_title -> My title.
const NAMED = new Map([["path", "Folder or file"], ["seconds", "Length in seconds"], ["bpm", "BPM"]]);
export function titleOf(column) {
  const words = column.replaceAll("_", " ");
  return NAMED.get(column) ?? words.charAt(0).toUpperCase() + words.slice(1);
}

// Rounded down: 99.97 must not read as 100.
export function percent(percentile) {
  const digits = percentile >= 99.9 && percentile < 100 ? 2 : 1;
  return (Math.floor(percentile * 10 ** digits + 1e-6) / 10 ** digits).toFixed(percentile >= 100 ? 0 : digits);
}

// A setting that outlives the page, where storage is allowed.
export const setting = {
  get(name, otherwise) {
    try {
      return localStorage.getItem(`antiphon.${name}`) ?? otherwise;
    } catch {
      return otherwise;
    }
  },
  set(name, value) {
    try {
      if (value === null) localStorage.removeItem(`antiphon.${name}`);
      else localStorage.setItem(`antiphon.${name}`, value);
    } catch {
      // storage is switched off: the setting holds until the page is closed
    }
  },
};

export async function copy(text) {
  try {
    await navigator.clipboard.writeText(text);
    return true;
  } catch {
    // Plain http to another host has no clipboard; the old way still works there.
    const area = make("textarea", { value: text, readOnly: true });
    area.className = "unseen";
    const focused = document.activeElement;
    document.body.append(area);
    area.select();
    const copied = document.execCommand("copy");
    area.remove();
    focused?.focus({ preventScroll: true });
    return copied;
  }
}
