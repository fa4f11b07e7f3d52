// Elements, tables that are brought up to date in place, and how figures are written. Text is always set as text.

const SVG = "http://www.w3.org/2000/svg";

export const byId = (id) => document.getElementById(id);

/** An element with attributes and children; a string is text. */
export function el(tag, attributes = {}, ...children) {
  return fill(document.createElement(tag), attributes, children);
}

/** The same in SVG. */
export function svg(tag, attributes = {}, ...children) {
  return fill(document.createElementNS(SVG, tag), attributes, children);
}

function fill(element, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) {
    if (value !== undefined && value !== null && value !== false) element.setAttribute(name, value === true ? "" : value);
  }
  element.append(...children);
  return element;
}

/** Sets the text of an element, if it is another one. */
export function text(element, value) {
  const string = String(value);
  if (element.textContent !== string) element.textContent = string;
}

/** Sets an attribute, if it is another one. */
export function attribute(element, name, value) {
  if (element.getAttribute(name) !== value) element.setAttribute(name, value);
}

/**
 * Brings the children of `parent` in line with `items`, each known by its key: what stays keeps its element, and with it
 * focus and selection. `make(item)` gives an element and `update(element, item)` fills it.
 */
export function list(parent, items, { key, make, update, empty }) {
  const old = new Map();
  for (const child of [...parent.children]) {
    if (child.dataset.key === undefined) child.remove();
    else old.set(child.dataset.key, child);
  }
  let place = parent.firstElementChild;
  for (const item of items) {
    const name = String(key(item));
    let child = old.get(name);
    old.delete(name);
    if (!child) {
      child = make(item);
      child.dataset.key = name;
    }
    update(child, item);
    if (child === place) place = place.nextElementSibling;
    else parent.insertBefore(child, place);
  }
  for (const child of old.values()) child.remove();
  if (items.length === 0 && empty) parent.append(empty());
}

/** A row of cells: `[label, class]` each. */
export function row(cells, attributes = {}) {
  const tds = cells.map(([label, name]) => el("td", { "data-label": label, class: name }));
  return el("tr", attributes, ...tds);
}

/** In place of rows where there are none. */
export function emptyRow(columns, message) {
  return el("tr", { class: "empty" }, el("td", { colspan: columns, class: "wide", "data-label": "" }, message));
}

/** A bar with its value behind it. */
export function meter() {
  return el("div", { class: "meter" }, el("div", { class: "track" }, el("div", { class: "fill" })), el("output"));
}

/** Sets a bar made by `meter`; `share` is 0 to 1. */
export function setMeter(element, share, value, tone) {
  const bar = element.querySelector(".fill");
  bar.style.width = `${Math.round(Math.min(Math.max(share, 0), 1) * 1000) / 10}%`;
  attribute(bar, "data-tone", tone ?? "");
  text(element.querySelector("output"), value);
}

/** A word with a dot whose colour says the same. */
export function setTag(cell, tone, word) {
  let tag = cell.querySelector(".tag");
  if (!tag) {
    tag = el("span", { class: "tag" }, el("span", { class: "dot", "aria-hidden": "true" }), el("span"));
    cell.append(tag);
  }
  attribute(tag, "data-tone", tone);
  text(tag.lastElementChild, word);
}

const NONE = "–";
const plain = new Intl.NumberFormat("en", { maximumFractionDigits: 0 });
const compact = new Intl.NumberFormat("en", { notation: "compact", maximumFractionDigits: 1 });

/** 1,234; 12.3K from ten thousand on. */
export function count(value) {
  if (value === undefined || value === null) return NONE;
  return value < 10000 ? plain.format(value) : compact.format(value);
}

/** A rate: 0, 0.42, 4.2, 42, 4,200. */
export function rate(value) {
  if (value === undefined || value === null) return NONE;
  if (value === 0) return "0";
  if (value < 1) return value.toFixed(2);
  return value < 20 ? value.toFixed(1) : count(Math.round(value));
}

/** A time that was measured: 850 µs, 4.2 ms, 42 ms, 1.24 s. */
export function time(seconds) {
  if (seconds === undefined || seconds === null) return NONE;
  if (seconds < 0.001) return `${Math.round(seconds * 1e6)} µs`;
  if (seconds < 0.01) return `${(seconds * 1e3).toFixed(1)} ms`;
  if (seconds < 1) return `${Math.round(seconds * 1e3)} ms`;
  return seconds < 10 ? `${seconds.toFixed(2)} s` : `${seconds.toFixed(1)} s`;
}

/** How long ago, or for how long: 3 s, 4 min, 5 h, 6 d. */
export function age(seconds) {
  if (seconds === undefined || seconds === null) return NONE;
  if (seconds < 10) return `${seconds.toFixed(1)} s`;
  if (seconds < 120) return `${Math.floor(seconds)} s`;
  if (seconds < 7200) return `${Math.floor(seconds / 60)} min`;
  return seconds < 172800 ? `${Math.floor(seconds / 3600)} h` : `${Math.floor(seconds / 86400)} d`;
}

export function percent(share) {
  if (share === undefined || share === null) return NONE;
  return share > 0 && share < 0.1 ? `${(share * 100).toFixed(1)} %` : `${Math.round(share * 100)} %`;
}

export function bytes(value) {
  if (value < 1024) return `${value} B`;
  if (value < 1024 * 1024) return `${(value / 1024).toFixed(1)} KiB`;
  return `${(value / 1024 / 1024).toFixed(1)} MiB`;
}
