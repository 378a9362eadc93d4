// Draws events as they arrive; the page turns grey without a connection.

import { may, onKey, showRights } from "./access.js";
import { connect } from "./connection.js";
import { drawDevices } from "./devices.js";
import { byId, setText } from "./dom.js";
import { drawEngines } from "./engines.js";
import { clearEvents, showEvent } from "./events.js";
import { duration } from "./format.js";
import { remember } from "./history.js";
import { offerLogs, openLog } from "./logs.js";
import { ask } from "./memoria.js";
import { offerModels } from "./playground.js";
import { watchRequests } from "./requests.js";

const COLORS = 6;
const colors = new Map(); // by engine name; a new engine takes no colour from another
let isLive = false; // whether entries of the journal are no longer history

const on = {
  rights(granted) {
    showRights(granted);
    if (!may("look")) setText(byId("health"), "locked");
  },
  open(signal) {
    isLive = false;
    clearEvents();
    openLog(signal);
    watchRequests(signal);
  },
  event(kind, data) {
    document.body.classList.remove("stale");
    if (kind === "status") draw(data);
    else if (kind === "history") remember(data.samples);
    else if (kind === "journal") tell(data);
  },
  lost() {
    document.body.classList.add("stale");
    setText(byId("health"), "no connection to memoria");
    setText(byId("uptime"), "figures are outdated");
  },
};

function draw(status) {
  isLive = true;
  const names = status.engines.map((engine) => engine.name);
  for (const name of names) if (!colors.has(name)) colors.set(name, `e${colors.size % COLORS}`);
  const ready = status.engines.filter((engine) => engine.state === "ready").length;
  setText(byId("version"), status.version);
  setText(byId("health"), `${status.status}: ${ready} of ${names.length} engines ready`);
  byId("health").className = status.status;
  setText(byId("uptime"), `up ${duration(status.uptime)}`);
  document.title = status.status === "healthy" ? "memoria" : `memoria: ${status.status}`;
  drawDevices(byId("devices"), status, colors);
  drawEngines(status, colors, { control, allowed: may("control") });
  offerLogs(names);
  offerModels(status.engines);
}

function tell(entry) {
  showEvent(entry);
  if (isLive && entry.kind === "reloaded") connect(on); // other keys, perhaps
}

async function control(engine, action) {
  try {
    await ask(`admin/engines/${engine}/${action}`, { method: "POST" });
    notice("");
  } catch (error) {
    notice(`${action} ${engine}: ${error.message}`);
    if (error.status) connect(on);
  }
}

function notice(text) {
  setText(byId("notice"), text);
  byId("notice").hidden = text === "";
}

onKey(() => {
  notice("");
  connect(on);
});
document.addEventListener("visibilitychange", () => {
  document.title = "memoria"; // the state is not known while the tab is hidden
  connect(on);
});
connect(on);
