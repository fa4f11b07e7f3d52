// The fleet, where traffic goes, the hottest prefixes and the live streams: tables that are brought up to date in place.

import { request } from "./api.js";
import { age, attribute, byId, bytes, count, el, emptyRow, list, meter, percent, rate, row, setMeter, setTag, text, time } from "./dom.js";

/** What a worker is, in one word: the worst that is known of it. */
function state(worker) {
  if (worker.standing === "leaving") return ["warn", `Leaving, ${left(worker)}`];
  if (worker.standing === "draining") return worker.drain?.done ? ["warn", "Drained"] : ["warn", `Draining, ${left(worker)}`];
  if (worker.standing === "unready") return ["warn", "Not ready, says its source"];
  if (worker.health === "unhealthy") return ["bad", "Unhealthy"];
  if (worker.breaker === "open") return ["bad", "Failing"];
  if (worker.engine === "hung") return ["bad", "Hung"];
  if (worker.engine === "suspect") return ["warn", "Silent"];
  if (worker.ejected) return ["warn", "Left out: stands out"];
  if (worker.resting) return ["warn", "Resting, as it asked"];
  if (worker.health === "unknown") return ["quiet", "Not checked yet"];
  return ["good", "Serving"];
}

function left(worker) {
  return worker.drain ? `${worker.drain.in_flight_left} of ${worker.drain.in_flight_at_first} left` : "";
}

const BREAKERS = { closed: ["good", "Closed"], open: ["bad", "Open"], half_open: ["warn", "Half open"] };

export function showFleet({ workers, stats }) {
  const lately = new Map(stats.workers.map((worker) => [worker.worker, worker]));
  const busiest = Math.max(8, ...workers.map((worker) => worker.in_flight_requests));
  text(byId("fleet-count"), workers.length === 1 ? "1 worker" : `${workers.length} workers`);
  list(byId("workers"), workers, {
    key: (worker) => `${worker.name} ${worker.url}`,
    make: makeWorker,
    empty: () => emptyRow(10, "No workers. Add one: warmpath workers add URL"),
    update(tr, worker) {
      const [name, standing, breaker, load, kv, queue, requests, ttft, itl, action] = tr.children;
      const recent = lately.get(worker.name);
      text(name.querySelector(".name"), worker.name);
      text(name.querySelector(".sub"), worker.url);
      setTag(standing, ...state(worker));
      setTag(breaker, ...(BREAKERS[worker.breaker] ?? ["quiet", worker.breaker]));
      setMeter(load.firstChild, worker.in_flight_requests / busiest, count(worker.in_flight_requests));
      setMeter(kv.firstChild, worker.kv_cache_usage, percent(worker.kv_cache_usage), worker.kv_cache_usage > 0.95 ? "bad" : "");
      text(queue, `${count(worker.queued_prefill_tokens)} tok`);
      text(requests, rate(recent?.requests_per_second));
      text(ttft, time(recent?.time_to_first_token.p50));
      text(itl, time(recent?.inter_token_latency.p50));
      const button = action.querySelector("button");
      const drains = worker.standing === "serving";
      text(button, drains ? "Drain" : "Undrain");
      attribute(button, "aria-label", `${drains ? "Drain" : "Undrain"} ${worker.name}`);
      button.disabled = worker.standing === "leaving";
      button.dataset.action = drains ? "drain" : "undrain";
      button.dataset.worker = worker.name;
    },
  });
}

function makeWorker() {
  const tr = row([
    ["", "wide"], ["State", ""], ["Breaker", ""], ["In flight", ""], ["KV cache", ""], ["Prefill queue", "number"],
    ["Requests/s", "number"], ["First token", "number"], ["Between tokens", "number"], ["", "number"],
  ]);
  tr.children[0].append(el("span", { class: "name" }), el("span", { class: "sub" }));
  tr.children[3].append(meter());
  tr.children[4].append(meter());
  const button = el("button", { type: "button" });
  button.addEventListener("click", () => change(button));
  tr.children[9].append(button);
  return tr;
}

/** Asks, then drains or puts back. */
async function change(button) {
  const { action, worker } = button.dataset;
  const drains = action === "drain";
  const dialog = byId("confirm");
  text(byId("confirm-title"), drains ? `Drain ${worker}?` : `Put ${worker} back?`);
  text(byId("confirm-text"), drains
    ? "It gets no more requests; those in flight finish. It stays in the fleet, with its cache, until you put it back."
    : "It gets requests again from now on.");
  text(byId("confirm-yes"), drains ? "Drain" : "Undrain");
  dialog.returnValue = "no";
  dialog.showModal();
  await new Promise((resolve) => dialog.addEventListener("close", resolve, { once: true }));
  button.focus();
  if (dialog.returnValue !== "yes") return;
  try {
    await request("POST", `/workers/${encodeURIComponent(worker)}/${action}`);
    notice("");
  } catch (error) {
    notice(`${worker}: ${error.message}`);
  }
}

/** One line on top of the page; none where it is empty. */
export function notice(message) {
  text(byId("notice"), message);
  byId("notice").hidden = message === "";
}

/** Reasons in words. */
export const REASONS = {
  prefix_hit: ["Prefix hit", "Nobody holds more of the prompt, and waiting there costs less than prefilling elsewhere"],
  load_over_prefix: ["Load over prefix", "Somebody holds more of the prompt, but is too busy for that to pay"],
  least_cost: ["Least cost", "Nobody holds any of the prompt: the least work"],
  tie_lru: ["Tie", "Several were equally good: the one chosen longest ago"],
  only_candidate: ["Only candidate", "There was no choice"],
  least_loaded: ["Least loaded", "The fewest requests"],
  power_of_two: ["Power of two", "The better of two at random"],
  round_robin: ["Round robin", "Its turn"],
  random: ["Random", "Drawn"],
  saturated: ["Saturated", "The one that holds more of the prompt is at its limit"],
  session: ["Session", "The session's own worker"],
  session_overflow: ["Session overflow", "The session's own worker has more than its share"],
  highest_score: ["Highest score", "The highest sum of weighted scores"],
  weighted_random: ["Weighted random", "Drawn with chances by score"],
  previous_response: ["Previous response", "It made the response that this one goes on from"],
};

export function showTraffic({ stats }) {
  const all = stats.workers.reduce((sum, worker) => sum + worker.requests_per_second, 0);
  const workers = [...stats.workers].sort((a, b) => b.requests_per_second - a.requests_per_second);
  bars(byId("where"), workers.slice(0, 12).map((worker) => ({
    key: worker.worker, name: worker.worker, share: all > 0 ? worker.requests_per_second / all : 0,
    value: `${rate(worker.requests_per_second)}/s`,
  })), "No worker yet");
  const decided = stats.decisions.reduce((sum, reason) => sum + reason.last_60s, 0);
  const reasons = stats.decisions.filter((reason) => reason.last_60s > 0);
  bars(byId("why"), reasons.map((reason) => {
    const [name, note] = REASONS[reason.reason] ?? [reason.reason, ""];
    return { key: reason.reason, name, note, share: reason.last_60s / decided, value: count(reason.last_60s) };
  }), "No decision in the last minute");
}

function bars(parent, items, nothing) {
  list(parent, items, {
    key: (item) => item.key,
    make: () => el("li", {}, el("span", { class: "name" }), el("span"), el("div", { class: "track" }, el("div", { class: "fill" })), el("span", { class: "sub" })),
    empty: () => el("li", { class: "sub" }, nothing),
    update(li, item) {
      const [name, value, track, note] = li.children;
      text(name, item.name);
      text(value, `${percent(item.share)} · ${item.value}`);
      track.firstChild.style.width = `${Math.round(item.share * 1000) / 10}%`;
      text(note, item.note ?? "");
      note.hidden = !item.note;
    },
  });
}

export function showPrefixes({ hottest_prefixes }) {
  list(byId("prefixes"), hottest_prefixes, {
    key: (prefix) => prefix.hash,
    make() {
      const tr = row([["", "wide"], ["Tokens", "number"], ["Requests", "number"], ["Last used", "number"], ["Held by", "wide"]]);
      tr.children[0].append(el("span", { class: "code" }), el("span", { class: "sub" }));
      tr.children[4].append(el("div", { class: "chips" }));
      return tr;
    },
    empty: () => emptyRow(5, "No prefix has been seen yet"),
    update(tr, prefix) {
      const [hash, tokens, hits, used, held] = tr.children;
      text(hash.firstChild, prefix.hash);
      text(hash.lastChild, prefix.parent_hash ? `goes on from ${prefix.parent_hash.slice(0, 8)}…` : "begins a prompt");
      text(tokens, `≈ ${count(prefix.depth_tokens)}`);
      text(hits, count(prefix.hits));
      text(used, `${age(prefix.idle_seconds)} ago`);
      list(held.firstChild, prefix.workers, { key: (name) => name, make: () => el("span"), update: text });
    },
  });
}

const MOVERS = { copy: "This process", bypass: "Kernel (bypass)", splice: "Kernel (splice)" };

export function showStreams({ live }) {
  text(byId("live-count"), count(live.count));
  list(byId("streams"), live.streams, {
    key: (stream) => `${stream.client} ${stream.worker}`,
    make: () => row([["Client", ""], ["Worker", "text"], ["Moved by", ""], ["Age", "number"], ["First token", "number"], ["Tokens", "number"], ["Bytes", "number"]]),
    empty: () => emptyRow(7, "No stream is under way"),
    update(tr, stream) {
      const values = [
        stream.client, stream.worker ?? "gone", MOVERS[stream.moved_by], age(stream.age_seconds),
        stream.first_byte_seconds === undefined ? "waiting" : time(stream.first_byte_seconds), count(stream.events), bytes(stream.bytes),
      ];
      values.forEach((value, at) => text(tr.children[at], value));
    },
  });
}
