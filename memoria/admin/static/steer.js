// Start, stop and restart of one engine. What ends it asks once more, in place.

import { make } from "./dom.js";
import { STATES } from "./states.js";

const ENDS = { stop: "Stop", restart: "Restart" };

export function makeSteering(name, steer) {
  const wishes = make("div", "", { class: "bar" });
  const confirm = make("div", "", { class: "bar confirm", role: "group", hidden: "" });
  const buttons = new Map(["start", "stop", "restart"].map((wish) => {
    const button = make("button", wish, { type: "button", "aria-label": `${wish} ${name}` });
    button.addEventListener("click", () => (wish in ENDS ? ask(wish, button) : steer(name, wish)));
    return [wish, button];
  }));
  wishes.append(...buttons.values());
  const part = { element: make("div", "", { class: "steering" }, wishes, confirm), buttons, inFlight: 0 };

  function ask(wish, from) {
    const question = `${ENDS[wish]} ${name}?`;
    const about = part.inFlight ? `${part.inFlight} in flight may finish first.` : "It has no requests.";
    const yes = make("button", wish, { type: "button", class: "grave", "aria-label": `confirm: ${wish} ${name}` });
    const no = make("button", "cancel", { type: "button", "aria-label": `cancel: ${wish} ${name}` });
    const back = () => {
      confirm.hidden = true;
      wishes.hidden = false;
      from.focus();
    };
    yes.addEventListener("click", () => {
      back();
      steer(name, wish);
    });
    no.addEventListener("click", back);
    confirm.onkeydown = (event) => {
      if (event.key === "Escape") back();
    };
    confirm.setAttribute("aria-label", question);
    confirm.replaceChildren(make("span", question), yes, no, make("span", about, { class: "quiet" }));
    wishes.hidden = true;
    confirm.hidden = false;
    yes.focus();
  }
  return part;
}

export function updateSteering(part, engine, allowed) {
  part.element.hidden = !allowed;
  part.inFlight = engine.in_flight;
  const { startable } = STATES[engine.state];
  part.buttons.get("start").hidden = !startable;
  part.buttons.get("stop").hidden = engine.state === "stopped";
  part.buttons.get("restart").hidden = startable;
}
