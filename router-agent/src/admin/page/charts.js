// Small charts of the last five minutes: lines over time, drawn as SVG, with the values under the pointer in the legend.

import { el, svg, text } from "./dom.js";

const SPAN_MS = 300_000;
const WIDTH = 280;
const HEIGHT = 100;
const TOP = 2;
const BOTTOM = 2;

/** A chart in `figure`. `lines`: `{ name, style, value(point) }`; `write(value)` says a value; `ceiling`: the least top. */
export function chart(figure, { title, lines, write, ceiling, top }) {
  const keys = lines.map((line) => el("span", { class: line.style }, el("i"), el("span")));
  const caption = el("figcaption", {}, el("strong", {}, title), el("span", { class: "keys" }, ...keys));
  const area = svg("path", { class: "area" });
  const paths = lines.map((line) => svg("path", { class: `line ${line.style}` }));
  const cursor = svg("line", { class: "cursor", y1: TOP, y2: HEIGHT - BOTTOM, visibility: "hidden" });
  const y0 = HEIGHT - BOTTOM;
  const drawing = svg(
    "svg", { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, preserveAspectRatio: "none", role: "img" },
    svg("line", { class: "grid", x1: 0, x2: WIDTH, y1: TOP, y2: TOP }),
    svg("line", { class: "grid", x1: 0, x2: WIDTH, y1: y0, y2: y0 }),
    area, ...paths.toReversed(), cursor,
  );
  const scale = el("div", { class: "scale" });
  const topScale = el("div", { class: "scale" });
  figure.append(caption, topScale, drawing, scale);
  const labels = [el("span"), el("span"), el("span", {}, "now")];
  topScale.append(labels[0]);
  scale.append(...labels.slice(1));

  let points = [];
  let pointed = null;

  const draw = () => {
    const now = points.at(-1)?.at_ms ?? 0;
    const x = (point) => WIDTH - ((now - point.at_ms) / SPAN_MS) * WIDTH;
    const values = points.flatMap((point) => lines.map((line) => line.value(point) ?? 0));
    const most = top ?? nice(Math.max(ceiling, ...values));
    const y = (value) => y0 - (Math.min(value, most) / most) * (y0 - TOP);
    const path = (line) => {
      let d = "";
      let pen = false;
      for (const point of points) {
        const value = line.value(point);
        if (value === undefined || value === null) { pen = false; continue; }
        d += `${pen ? "L" : "M"}${x(point).toFixed(1)} ${y(value).toFixed(1)}`;
        pen = true;
      }
      return d;
    };
    lines.forEach((line, at) => paths[at].setAttribute("d", path(line)));
    const first = points.find((point) => lines[0].value(point) !== undefined);
    const isWhole = first && points.slice(points.indexOf(first)).every((point) => lines[0].value(point) !== undefined);
    area.setAttribute("d", isWhole ? `${path(lines[0])}L${WIDTH} ${y0}L${x(first).toFixed(1)} ${y0}Z` : "");
    text(labels[0], write(most));
    const shown = pointed === null ? points.at(-1) : nearest(points, now - SPAN_MS * (1 - pointed));
    cursor.setAttribute("visibility", pointed === null || !shown ? "hidden" : "visible");
    if (shown) {
      cursor.setAttribute("x1", x(shown));
      cursor.setAttribute("x2", x(shown));
    }
    lines.forEach((line, at) => text(keys[at].lastElementChild, `${line.name} ${shown ? write(line.value(shown)) : "–"}`.trim()));
    text(labels[1], pointed === null || !shown ? "5 min ago" : `${Math.round((now - shown.at_ms) / 1000)} s ago`);
    const said = lines.map((line) => `${line.name} ${shown ? write(line.value(shown)) : "–"}`).join(", ");
    drawing.setAttribute("aria-label", `${title}: ${said}`);
  };
  drawing.addEventListener("pointermove", (event) => {
    const box = drawing.getBoundingClientRect();
    pointed = Math.min(Math.max((event.clientX - box.left) / box.width, 0), 1);
    draw();
  });
  drawing.addEventListener("pointerleave", () => { pointed = null; draw(); });
  return (all) => { points = all; draw(); };
}

function nearest(points, at) {
  return points.reduce((best, point) => (Math.abs(point.at_ms - at) < Math.abs(best.at_ms - at) ? point : best), points[0]);
}

/** The next of 1, 2, 5, 10, 20 … */
function nice(value) {
  const unit = 10 ** Math.floor(Math.log10(value));
  return [1, 2, 5, 10].map((step) => step * unit).find((step) => step >= value * 0.999) ?? value;
}

/** The points of the last five minutes, old and new ones together. */
export function lately(old, added) {
  const all = [...old, ...added];
  const from = (all.at(-1)?.at_ms ?? 0) - SPAN_MS;
  return all.filter((point) => point.at_ms >= from);
}
