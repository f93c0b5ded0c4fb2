// Sounds from outside: chosen, dropped anywhere on the page, or pasted.

import { $ } from "./dom.js";

export const OWN = "application/x-antiphon"; // a row of this page on its way out

export function onSounds(take) {
  $("file").addEventListener("change", () => {
    take([...$("file").files]);
    $("file").value = "";
  });
  addEventListener("paste", (event) => {
    const files = [...(event.clipboardData?.files ?? [])];
    if (!files.length) return;
    event.preventDefault();
    take(files);
  });
  onDrop(take);
}

function onDrop(take) {
  const carriesSound = ({ dataTransfer }) => dataTransfer?.types.includes("Files") && !dataTransfer.types.includes(OWN);
  let depth = 0; // every element under the pointer reports that it was entered and left
  const entered = (change) => {
    depth = change === null ? 0 : depth + change;
    $("drop").hidden = depth <= 0;
  };
  addEventListener("dragenter", (event) => {
    if (!carriesSound(event)) return;
    event.preventDefault();
    entered(1);
  });
  addEventListener("dragover", (event) => carriesSound(event) && event.preventDefault());
  addEventListener("dragleave", (event) => carriesSound(event) && entered(-1));
  addEventListener("drop", (event) => {
    entered(null);
    if (!carriesSound(event)) return;
    event.preventDefault();
    take([...event.dataTransfer.files]);
  });
}
