// Requests to the gateway, with the token where one is needed. The token is kept in this tab's session storage only, and
// sent as a bearer credential: no cookie, so no other page's request carries it. The header x-warmpath-page tells a gateway
// without a token that this page asks: other origins' pages cannot add it.

import { byId } from "./dom.js";

const TOKEN = "warmpath-admin-token";
const RETRY_MS = [500, 1000, 2000, 5000];

function headers() {
  const fields = { "x-warmpath-page": "1" };
  const token = sessionStorage.getItem(TOKEN);
  if (token) fields.authorization = `Bearer ${token}`;
  return fields;
}

async function send(path, options = {}) {
  for (;;) {
    const response = await fetch(path, { ...options, headers: headers(), credentials: "same-origin", cache: "no-store" });
    if (response.status !== 401) return response;
    await askForToken();
  }
}

/** The JSON of an answer; an error has the gateway's own words. */
export async function request(method, path) {
  const response = await send(path, { method });
  const body = await response.json().catch(() => ({}));
  if (!response.ok) throw new Error(body.error ?? `${response.status} ${response.statusText}`);
  return body;
}

let asking = null;

/** Asks for the token; several requests at once ask once. */
function askForToken() {
  asking ??= new Promise((resolve) => {
    const dialog = byId("login");
    byId("login-wrong").hidden = !sessionStorage.getItem(TOKEN);
    byId("token").value = "";
    const done = () => {
      const token = byId("token").value.trim();
      if (!token) return dialog.showModal();
      dialog.removeEventListener("close", done);
      sessionStorage.setItem(TOKEN, token);
      asking = null;
      resolve();
    };
    dialog.addEventListener("close", done);
    dialog.showModal();
  });
  return asking;
}

/**
 * Follows the events for ever: `onSnapshot(snapshot)` for each, `onLost(why)` while there is no connection. `EventSource`
 * cannot send a header; the format is read here (WHATWG HTML, section 9.2: lines, empty line behind each event).
 */
export async function follow(onSnapshot, onLost) {
  for (let failures = 0; ; failures++) {
    try {
      const response = await send("/events?interval=1s");
      if (!response.ok) {
        const body = await response.json().catch(() => ({}));
        throw new Error(body.error ?? `${response.status} ${response.statusText}`);
      }
      failures = 0;
      await read(response.body, onSnapshot);
      onLost("The gateway has ended the stream");
    } catch (error) {
      onLost(error instanceof TypeError ? "The gateway does not answer" : error.message);
    }
    const pause = RETRY_MS[Math.min(failures, RETRY_MS.length - 1)];
    await new Promise((resolve) => setTimeout(resolve, pause));
  }
}

async function read(body, onSnapshot) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  let waiting = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    waiting += value;
    for (let end; (end = waiting.indexOf("\n\n")) >= 0; waiting = waiting.slice(end + 2)) {
      const lines = waiting.slice(0, end).split("\n");
      const data = lines.filter((line) => line.startsWith("data:")).map((line) => line.slice(5)).join("\n");
      if (data) onSnapshot(JSON.parse(data));
    }
  }
}
