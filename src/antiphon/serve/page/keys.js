// The keyboard: which key means something where. Fields keep what is typed, buttons keep Space and Enter.

const TYPED = "input:not([type=checkbox], [type=radio], [type=range]), select, textarea";
const ARROWS = "input[type=radio], input[type=range]";

// `keys`: key -> what it does. `on`: leave(target) for Escape, enter() for going down from the search box.
export function onKeys(keys, on) {
  document.addEventListener("keydown", (event) => {
    const { target, key } = event;
    if (event.defaultPrevented || event.ctrlKey || event.metaKey || event.altKey) return;
    if (document.querySelector("dialog[open]")) return;
    if (key === "Escape") return on.leave(target);
    if (target.id === "words" && key === "ArrowDown") {
      event.preventDefault();
      return on.enter();
    }
    if (!Object.hasOwn(keys, key) || belongs(target, key)) return;
    event.preventDefault();
    keys[key]();
  });
}

function belongs(target, key) {
  if (target.closest(TYPED)) return true;
  if (target.closest(ARROWS)) return key.startsWith("Arrow") || key === " ";
  if (target.closest("input")) return key === " ";
  return (key === " " || key === "Enter") && Boolean(target.closest("button, a"));
}
