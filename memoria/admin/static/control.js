// Start, stop and restart of one engine. Stop and restart need a confirmation, in place.

import { make } from "./dom.js";
import { STATES } from "./states.js";

const ENDS = { stop: "Stop", restart: "Restart" };

export function makeControls(name, control) {
  const actions = make("div", "", { class: "bar" });
  const confirm = make("div", "", { class: "bar confirm", role: "group", hidden: "" });
  const buttons = new Map(["start", "stop", "restart"].map((action) => {
    const button = make("button", action, { type: "button", "aria-label": `${action} ${name}` });
    button.addEventListener("click", () => (action in ENDS ? confirmFirst(action, button) : control(name, action)));
    return [action, button];
  }));
  actions.append(...buttons.values());
  const part = { element: make("div", "", { class: "control" }, actions, confirm), buttons, inFlight: 0 };

  function confirmFirst(action, from) {
    const question = `${ENDS[action]} ${name}?`;
    const about = part.inFlight ? `${part.inFlight} in flight may finish first.` : "It has no requests.";
    const yes = make("button", action, { type: "button", class: "grave", "aria-label": `confirm: ${action} ${name}` });
    const no = make("button", "cancel", { type: "button", "aria-label": `cancel: ${action} ${name}` });
    const back = () => {
      confirm.hidden = true;
      actions.hidden = false;
      from.focus();
    };
    yes.addEventListener("click", () => {
      back();
      control(name, action);
    });
    no.addEventListener("click", back);
    confirm.onkeydown = (event) => {
      if (event.key === "Escape") back();
    };
    confirm.setAttribute("aria-label", question);
    confirm.replaceChildren(make("span", question), yes, no, make("span", about, { class: "quiet" }));
    actions.hidden = true;
    confirm.hidden = false;
    yes.focus();
  }
  return part;
}

export function updateControls(part, engine, allowed) {
  part.element.hidden = !allowed;
  part.inFlight = engine.in_flight;
  const { startable } = STATES[engine.state];
  part.buttons.get("start").hidden = !startable;
  part.buttons.get("stop").hidden = engine.state === "stopped";
  part.buttons.get("restart").hidden = startable;
}
