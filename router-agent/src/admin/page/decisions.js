// The newest decisions, and one of them in full: every worker's score, and what became of the request.

import { request } from "./api.js";
import { byId, count, el, emptyRow, list, percent, row, text, time } from "./dom.js";
import { REASONS } from "./fleet.js";

const words = (reason) => REASONS[reason] ?? [reason, ""];

export function showDecisions({ decisions }) {
  list(byId("decisions"), decisions, {
    key: (decision) => `${decision.request_id} ${decision.attempt} ${decision.time}`,
    make(decision) {
      const tr = row(
        [["When", ""], ["Request", "wide"], ["Worker", "text"], ["Why", ""], ["Prompt", "number"], ["Cached", "number"], ["To prefill", "number"]],
        { class: "open-able" },
      );
      const button = el("button", { type: "button", class: "link", "aria-haspopup": "dialog" });
      tr.children[1].append(button);
      tr.addEventListener("click", () => open(decision.request_id));
      return tr;
    },
    empty: () => emptyRow(7, "No request has been routed yet"),
    update(tr, decision) {
      const [when, id, worker, why, prompt, cached, prefill] = tr.children;
      text(when, new Date(decision.time).toLocaleTimeString("en-GB"));
      text(id.firstChild, short(decision.request_id));
      text(worker, decision.attempt > 1 ? `${decision.worker} (try ${decision.attempt})` : decision.worker);
      text(why, words(decision.reason)[0]);
      text(prompt, count(decision.prompt_tokens));
      text(cached, decision.prompt_tokens > 0 ? percent(decision.matched_tokens / decision.prompt_tokens) : "–");
      text(prefill, `${count(decision.new_tokens)} tok`);
    },
  });
}

function short(id) {
  return id.length > 26 ? `${id.slice(0, 25)}…` : id;
}

/** All tries of one request. */
async function open(requestId) {
  const [dialog, body] = [byId("decision"), byId("decision-body")];
  text(byId("decision-title"), requestId);
  try {
    const tries = await request("GET", `/decisions/${encodeURIComponent(requestId)}`);
    body.replaceChildren(...tries.flatMap((decision) => part(decision, tries.length)));
  } catch (error) {
    body.replaceChildren(el("p", { class: "why" }, error.message));
  }
  if (!dialog.open) dialog.showModal();
}

function part(decision, tries) {
  const [name, note] = words(decision.reason);
  const try_ = tries > 1 ? `Try ${decision.attempt}: ` : "";
  const why = el("p", { class: "why" }, `${try_}${decision.worker}. ${name}: ${note}.`);
  const outcome = decision.outcome;
  const pairs = [
    ["Policy", decision.policy],
    ["Model", decision.model ?? "not named"],
    ["Tenant", decision.tenant],
    ["Prompt", `${count(decision.prompt_tokens)} tokens`],
    ["Believed cached", `${count(decision.matched_tokens)} tokens (${decision.match})`],
    ["Predicted first token", time(decision.predicted_time_to_first_token_seconds)],
    ["Observed first token", time(outcome?.time_to_first_token_seconds)],
    ["Cached, by the worker", outcome?.cached_tokens == null ? "–" : `${count(outcome.cached_tokens)} tokens`],
    ["Ended", outcome ? `${outcome.end}${outcome.status ? ` (${outcome.status})` : ""}${outcome.fault ? `, ${outcome.fault}` : ""}` : "under way"],
    ["Took", time(outcome?.duration_seconds)],
  ];
  const list = el("dl", { class: "pairs" }, ...pairs.map(([term, value]) => el("div", {}, el("dt", {}, term), el("dd", {}, value))));
  return [why, list, scores(decision)];
}

const UNITS = { microseconds: "Cost (predicted)", token_requests: "Cost (tokens × requests)", requests: "Cost (requests)", millionths_below_best: "Below the best score" };

function cost(decision, candidate) {
  if (decision.cost_unit === "microseconds") return time(candidate.cost / 1e6);
  if (decision.cost_unit === "millionths_below_best") return (candidate.cost / 1e6).toFixed(3);
  return decision.cost_unit ? count(candidate.cost) : "–";
}

/** Every worker that was in question, the cheapest first. */
function scores(decision) {
  const heads = ["Worker", UNITS[decision.cost_unit] ?? "Cost", "Cached", "To prefill", "Prefill queue", "Requests", "KV cache", "Predicted first token"];
  const rank = (candidate) => (candidate.worker === decision.worker ? -1 : candidate.cost);
  const rows = [...(decision.candidates ?? [])].sort((a, b) => rank(a) - rank(b)).map((candidate) => {
    const chosen = candidate.worker === decision.worker;
    const tr = row(heads.map((head, at) => [at === 0 ? "" : head, at === 0 ? "wide text" : "number"]), { class: chosen && "chosen" });
    const values = [
      candidate.worker, cost(decision, candidate), `${count(candidate.matched_tokens)} tok`, `${count(candidate.new_tokens)} tok`,
      `${count(candidate.queued_prefill_tokens)} tok`, count(candidate.batch_requests), percent(candidate.kv_cache_usage),
      time(candidate.predicted_time_to_first_token_seconds),
    ];
    values.forEach((value, at) => tr.children[at].append(value));
    if (chosen) tr.children[0].append(el("span", { class: "sub" }, "chosen"));
    else if (candidate.worker === decision.runner_up) tr.children[0].append(el("span", { class: "sub" }, "would have been next"));
    return tr;
  });
  const head = el("tr", {}, ...heads.map((head, at) => el("th", { scope: "col", class: at > 0 && "number" }, head)));
  return el("table", { class: "stack" }, el("thead", {}, head), el("tbody", {}, ...rows));
}
