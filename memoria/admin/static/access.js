// What the page may do with the key it has, and what it says of that.

import { byId, setText } from "./dom.js";
import { key } from "./memoria.js";

let rights = null;

export const may = (deed) => rights?.[deed].allowed ?? false;

export function showRights(told) {
  rights = told;
  const locked = !may("look");
  byId("locked").hidden = !locked;
  document.querySelector("main").hidden = locked;
  setText(byId("locked-why"), locked ? lockedBecause() : "");
  byId("key-form").hidden = !keyHelps();
  setText(byId("key-owner"), rights.key === null ? "" : `${rights.key}, ${may("steer") ? "admin" : "no admin"}`);
  byId("key-ask").hidden = rights.key !== null;
  byId("key-forget").hidden = key.get() === "";
  setText(byId("steer-note"), may("steer") ? "" : `Read-only. ${whyNot("steer", "engines are started and stopped")}`);
  byId("steer-note").hidden = may("steer");
}

// In the page's words, since the API's speak of headers.
export function whyNot(deed, what) {
  const wish = `With an admin's key ${what} here`;
  switch (rights[deed].code) {
    case "admin_keys_not_set":
      return `${wish}, and there are none: name a file of them with admin_keys in memoria.yaml, or use the memoria command.`;
    case "not_an_admin":
      return `${wish}; the key “${rights.key}” is not an admin's.`;
    default:
      return key.get() === "" ? `${wish}.` : `${wish}; the key that was given is not known.`;
  }
}

function lockedBecause() {
  return key.get() === ""
    ? "This memoria needs a key. An API key shows how the engines do; an admin's key also shows logs and requests, and starts and stops engines."
    : "This memoria does not know the key that was given. It needs an API key or an admin's key.";
}

// Where neither file of keys is configured there is nothing that a key could open.
function keyHelps() {
  return key.get() !== "" || ["look", "logs", "steer"].some((deed) => rights[deed].code === "invalid_api_key");
}

export function onKey(changed) {
  const use = (value) => {
    key.set(value);
    byId("key").value = "";
    changed();
  };
  byId("key-form").addEventListener("submit", (event) => {
    event.preventDefault();
    use(byId("key").value.trim());
  });
  byId("key-forget").addEventListener("click", () => use(""));
}
