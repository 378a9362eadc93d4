// Elements are changed in place, so that selection, hover and focus survive new figures.

const SVG = "http://www.w3.org/2000/svg";

// An element with text and attributes; text is never parsed as HTML.
export function make(name, text = "", attributes = {}, ...children) {
  return fill(document.createElement(name), text, attributes, children);
}

export function makeSvg(name, attributes = {}, ...children) {
  return fill(document.createElementNS(SVG, name), "", attributes, children);
}

function fill(element, text, attributes, children) {
  if (text !== "") element.textContent = text;
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
  element.append(...children);
  return element;
}

export const byId = (id) => document.getElementById(id);

export function setText(element, text) {
  if (element.textContent !== text) element.textContent = text;
}

export function setAttribute(element, name, value) {
  if (element.getAttribute(name) !== value) element.setAttribute(name, value);
}

// One child of `place` for each item, by key, in the order of the items. `build(item)` makes a part, an object
// whose `element` is the child; `update(part, item)` changes it. Parts without an item are removed.
export class Keyed {
  #parts = new Map();

  constructor(place, build, update) {
    Object.assign(this, { place, build, update });
  }

  draw(items, key) {
    const keys = new Set(items.map(key));
    for (const [old, part] of this.#parts) {
      if (keys.has(old)) continue;
      part.element.remove();
      this.#parts.delete(old);
    }
    items.forEach((item, index) => {
      if (!this.#parts.has(key(item))) this.#parts.set(key(item), this.build(item));
      const part = this.#parts.get(key(item));
      const there = this.place.children[index] ?? null;
      if (there !== part.element) this.place.insertBefore(part.element, there);
      this.update(part, item);
    });
  }
}
