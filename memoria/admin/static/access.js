// The rights of the page with its key, and the texts about them.

import { byId, setText } from "./dom.js";
import { key } from "./memoria.js";

let rights = null;

export const may = (right) => rights?.[right].allowed ?? false;

export function showRights(granted) {
  rights = granted;
  const locked = !may("look");
  byId("locked").hidden = !locked;
  document.querySelector("main").hidden = locked;
  setText(byId("locked-why"), locked ? lockedBecause() : "");
  byId("key-form").hidden = !keyHelps();
  setText(byId("key-owner"), rights.key === null ? "" : `${rights.key}, ${may("control") ? "admin" : "not an admin"}`);
  byId("key-ask").hidden = rights.key !== null;
  byId("key-forget").hidden = key.get() === "";
  setText(byId("control-note"), may("control") ? "" : `Read-only. ${whyNot("control", "Starting and stopping engines")}`);
  byId("control-note").hidden = may("control");
}

// The page's own words, since the API's speak of headers.
export function whyNot(right, what) {
  const needs = `${what} needs an admin key`;
  switch (rights[right].code) {
    case "admin_keys_not_set":
      return `${needs}, and none is configured (set admin_keys in memoria.yaml to a file of keys, or use the memoria command).`;
    case "not_an_admin":
      return `${needs}; the key “${rights.key}” is not an admin key.`;
    default:
      return key.get() === "" ? `${needs}.` : `${needs}; the key entered is not known.`;
  }
}

function lockedBecause() {
  return key.get() === ""
    ? "An API key shows the state of the engines; an admin key also shows logs and requests, and starts and stops engines."
    : "The key entered is not known. Enter an API key or an admin key.";
}

// Without any file of keys configured no key would help.
function keyHelps() {
  return key.get() !== "" || ["look", "logs", "control"].some((right) => rights[right].code === "invalid_api_key");
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
