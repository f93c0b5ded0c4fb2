// What is searched for and how it is shown, as a plain object; the URL's hash and the request are two ways to write it.

export const BALANCE = 0.5;
export const TOP = 50;

export const fresh = () => ({
  words: "",
  without: "",
  like: [], // {id, start, end, name} or {upload, name}
  unlike: [],
  balance: BALANCE, // towards 0 the words count, towards 1 the sounds
  filters: {}, // column -> {min, max} or {contains}
  where: "",
  by: "moment",
  diversity: 0,
  top: TOP,
  view: "list",
  library: "",
});

// What it should not be like alone says nothing of what it should be.
export const asksForSomething = (state) => Boolean(state.words.trim() || state.like.length);
export const mixes = (state) => Boolean(state.words.trim() && state.like.length);

export const sameExample = (a, b) =>
  a.upload || b.upload ? a.upload === b.upload : a.id === b.id && a.start === b.start && a.end === b.end;

export function toHash(state) {
  const out = new URLSearchParams();
  const set = (name, value, otherwise) => value !== otherwise && out.set(name, value);
  set("q", state.words, "");
  set("without", state.without, "");
  for (const example of state.like) out.append("like", writeExample(example));
  for (const example of state.unlike) out.append("unlike", writeExample(example));
  set("balance", state.balance, BALANCE);
  for (const [column, { min, max, contains }] of Object.entries(state.filters)) {
    out.append(`f.${column}`, contains === undefined ? `${min ?? ""}..${max ?? ""}` : `~${contains}`);
  }
  set("where", state.where, "");
  set("by", state.by, "moment");
  set("diversity", state.diversity, 0);
  set("top", state.top, TOP);
  set("view", state.view, "list");
  set("library", state.library, "");
  return out.toString();
}

export function fromHash(hash) {
  const given = new URLSearchParams(hash.replace(/^#/, ""));
  const state = fresh();
  state.words = given.get("q") ?? "";
  state.without = given.get("without") ?? "";
  state.like = given.getAll("like").map(readExample).filter(Boolean);
  state.unlike = given.getAll("unlike").map(readExample).filter(Boolean);
  state.balance = number(given.get("balance"), 0.05, 0.95, BALANCE);
  for (const [name, value] of given) {
    const filter = name.startsWith("f.") && readFilter(value);
    if (filter) state.filters[name.slice(2)] = filter;
  }
  state.where = given.get("where") ?? "";
  state.by = ["moment", "window", "file"].find((by) => by === given.get("by")) ?? "moment";
  state.diversity = number(given.get("diversity"), 0, 1, 0);
  state.top = Math.round(number(given.get("top"), 1, 200, TOP));
  state.view = given.get("view") === "map" ? "map" : "list";
  state.library = given.get("library") ?? "";
  return state;
}

// "id@3-8", or "up:<upload>:name"; a name has no other home once the sound was dropped.
const writeExample = (one) =>
  one.upload ? `up:${one.upload}:${one.name}` : `${one.id}${one.end === undefined ? "" : `@${one.start}-${one.end}`}`;

function readExample(text) {
  const upload = /^up:([^:]+):(.*)$/s.exec(text);
  if (upload) return { upload: upload[1], name: upload[2] };
  const sound = /^([0-9a-f]{16})(?:@([\d.]+)-([\d.]+))?$/.exec(text);
  if (!sound) return null;
  return sound[2] ? { id: sound[1], start: Number(sound[2]), end: Number(sound[3]) } : { id: sound[1] };
}

function readFilter(text) {
  if (text.startsWith("~")) return text.length > 1 ? { contains: text.slice(1) } : null;
  const range = /^(-?[\d.]*)\.\.(-?[\d.]*)$/.exec(text);
  if (!range) return null;
  const filter = {};
  if (range[1]) filter.min = Number(range[1]);
  if (range[2]) filter.max = Number(range[2]);
  return Object.values(filter).length && Object.values(filter).every(Number.isFinite) ? filter : null;
}

function number(text, low, high, otherwise) {
  const value = text === null || text === "" ? NaN : Number(text);
  return Number.isFinite(value) ? Math.min(Math.max(value, low), high) : otherwise;
}

export function toRequest(state) {
  const request = { by: state.by, top: state.top, curve: true };
  if (state.words.trim()) request.words = state.words.trim();
  if (state.without.trim()) request.without = state.without.trim();
  if (state.like.length) request.like = state.like.map(reference);
  if (state.unlike.length) request.unlike = state.unlike.map(reference);
  if (mixes(state)) {
    request.words_weight = 2 * (1 - state.balance);
    request.like_weight = 2 * state.balance;
  }
  if (Object.keys(state.filters).length) request.filters = state.filters;
  if (state.where.trim()) request.where = state.where.trim();
  if (state.diversity) request.diversity = state.diversity;
  if (state.library) request.library = state.library;
  return request;
}

const reference = ({ id, start, end, upload }) => (upload ? { upload } : { id, start, end });
