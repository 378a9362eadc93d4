// How figures are written: as in the `memoria` command. What is not known is a dash, never 0.

export const UNKNOWN = "–";
const known = (value) => value !== null && value !== undefined;

export const gib = (bytes) => (known(bytes) ? `${(bytes / 2 ** 30).toFixed(1)} GiB` : UNKNOWN);
export const percent = (share) => (known(share) ? `${Math.round(share * 100)} %` : UNKNOWN);
export const rate = (value) => (known(value) ? value.toFixed(1) : UNKNOWN);
export const count = (value) => (known(value) ? String(value) : UNKNOWN);

export function milliseconds(seconds) {
  if (!known(seconds)) return UNKNOWN;
  return seconds < 10 ? `${Math.round(seconds * 1000)} ms` : `${seconds.toFixed(1)} s`;
}

export function duration(seconds) {
  const whole = Math.max(0, Math.floor(seconds));
  const two = (number) => String(number).padStart(2, "0");
  if (whole < 60) return `${whole} s`;
  const minutes = Math.floor(whole / 60);
  if (minutes < 60) return `${minutes}m${two(whole % 60)}s`;
  const hours = Math.floor(minutes / 60);
  return hours < 24 ? `${hours}h${two(minutes % 60)}m` : `${Math.floor(hours / 24)}d${hours % 24}h`;
}

export const clock = (at) => new Date(at * 1000).toLocaleTimeString([], { hour12: false });

// An element with text and attributes; texts are never read as HTML.
export function make(name, text = "", attributes = {}, ...children) {
  const element = document.createElement(name);
  if (text !== "") element.textContent = text;
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
  element.append(...children);
  return element;
}
