// The field for the token. However many requests were refused, it is asked for once.

import { giveToken } from "./api.js";
import { $ } from "./dom.js";

let opening = null;

export function askForToken() {
  opening ??= new Promise((resolve) => {
    const dialog = $("token-dialog");
    const stay = (event) => event.preventDefault(); // Escape would leave a page that can do nothing
    dialog.addEventListener("cancel", stay);
    dialog.showModal();
    $("token-form").onsubmit = async (event) => {
      event.preventDefault();
      const trouble = await tryToken($("token").value);
      $("token-error").textContent = trouble;
      if (trouble) return $("token").select();
      dialog.removeEventListener("cancel", stay);
      dialog.close();
      opening = null;
      resolve();
    };
  });
  return opening;
}

async function tryToken(token) {
  try {
    return (await giveToken(token)) ? "" : "That is not the token of this server.";
  } catch (error) {
    return error.message;
  }
}
