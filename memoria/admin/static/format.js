// Figures as in the `memoria` command. What is not known is a dash, never 0.

export const UNKNOWN = "–";
export const known = (value) => value !== null && value !== undefined;

const bare = (bytes) => (bytes / 2 ** 30).toFixed(1);
const grouped = (value) => String(value).replace(/\B(?=(\d{3})+$)/g, "\u202f"); // a narrow space

export const gib = (bytes) => (known(bytes) ? `${bare(bytes)} GiB` : UNKNOWN);
export const gibOf = (bytes, whole) => `${known(bytes) ? bare(bytes) : UNKNOWN} of ${gib(whole)}`;
export const percent = (share) => (known(share) ? `${Math.round(share * 100)} %` : UNKNOWN);
export const count = (value) => (known(value) ? grouped(value) : UNKNOWN);

export function rate(value) {
  if (!known(value)) return UNKNOWN;
  return value < 100 ? value.toFixed(1) : grouped(Math.round(value));
}

export function milliseconds(seconds) {
  if (!known(seconds)) return UNKNOWN;
  if (seconds < 0.01) return `${(seconds * 1000).toFixed(1)} ms`;
  return seconds < 10 ? `${grouped(Math.round(seconds * 1000))} ms` : `${seconds.toFixed(1)} s`;
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
