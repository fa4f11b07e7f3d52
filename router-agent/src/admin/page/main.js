// The page: follows the gateway's events and shows each snapshot.

import { follow } from "./api.js";
import { chart, lately } from "./charts.js";
import { age, attribute, byId, count, percent, rate, text, time } from "./dom.js";
import { showDecisions } from "./decisions.js";
import { showFleet, showPrefixes, showStreams, showTraffic } from "./fleet.js";

const ttft = (share) => (point) => point.time_to_first_token[share];
const itl = (share) => (point) => point.inter_token_latency[share];
const times = (of) => [
  { name: "p50", style: "s1", value: of("p50") },
  { name: "p90", style: "s2", value: of("p90") },
  { name: "p99", style: "s3", value: of("p99") },
];

const charts = [
  chart(byId("chart-rate"), {
    title: "Requests per second", ceiling: 1, write: rate,
    lines: [
      { name: "answered", style: "s1", value: (point) => point.requests_per_second },
      { name: "failed", style: "error", value: (point) => point.server_errors_per_second },
    ],
  }),
  chart(byId("chart-ttft"), { title: "Time to first token", ceiling: 0.01, write: time, lines: times(ttft) }),
  chart(byId("chart-itl"), { title: "Between tokens", ceiling: 0.001, write: time, lines: times(itl) }),
  chart(byId("chart-hits"), {
    title: "Prefix hit rate", top: 1, write: percent,
    lines: [{ name: "of prompt tokens", style: "s1", value: (point) => point.hit_rate }],
  }),
];

let points = [];
let paused = false;
let newest = null;

function onSnapshot(snapshot) {
  points = lately(points, snapshot.history);
  newest = snapshot;
  if (!paused) show(snapshot);
}

function show(snapshot) {
  state(snapshot.ready ? "good" : "bad", snapshot.ready ? "Ready" : "No worker is available");
  text(byId("instance"), snapshot.instance);
  text(byId("policy"), snapshot.policy);
  text(byId("uptime"), age(Math.floor(snapshot.stats.uptime_seconds)));
  text(byId("version"), snapshot.version);
  showFigures(snapshot);
  for (const draw of charts) draw(points);
  showFleet(snapshot);
  showTraffic(snapshot);
  showDecisions(snapshot);
  showPrefixes(snapshot);
  showStreams(snapshot);
  document.documentElement.dataset.at = snapshot.at_ms;
}

function showFigures({ stats, workers }) {
  const { last_10s: ten, last_60s: minute } = stats;
  text(byId("rate"), rate(ten.requests_per_second));
  const failed = minute.server_errors_per_second > 0 ? `${rate(minute.server_errors_per_second)}/s failed` : "none failed";
  text(byId("rate-note"), `${count(stats.totals.requests)} since the start · ${failed}`);
  text(byId("ttft"), time(minute.time_to_first_token.p50));
  text(byId("ttft-note"), `p99 ${time(minute.time_to_first_token.p99)} · last minute`);
  text(byId("itl"), time(minute.inter_token_latency.p50));
  text(byId("itl-note"), `p99 ${time(minute.inter_token_latency.p99)} · ${rate(ten.stream_events_per_second)} tokens/s`);
  text(byId("hits"), percent(minute.hit_rate));
  const { matched_tokens: matched, prompt_tokens: prompt } = stats.totals;
  text(byId("hits-note"), prompt > 0 ? `${percent(matched / prompt)} since the start` : "no prompt yet");
  text(byId("in-flight"), count(stats.in_flight_requests));
  const serving = workers.filter((worker) => worker.standing === "serving" && worker.health !== "unhealthy").length;
  text(byId("in-flight-note"), `${count(stats.queue.requests)} waiting · ${serving} of ${workers.length} serving`);
}

function state(tone, words) {
  attribute(byId("state"), "data-tone", tone);
  text(byId("state-text"), paused ? `${words}, paused` : words);
}

byId("pause").addEventListener("click", () => {
  paused = !paused;
  attribute(byId("pause"), "aria-pressed", String(paused));
  text(byId("pause"), paused ? "Go on" : "Pause");
  if (newest) show(newest);
});

follow(onSnapshot, (why) => state("bad", why));
