// Curves as SVG: lines over images seen, smoothed, with the raw values faint behind them.

import { make, svg } from "./dom.js";

const [WIDTH, HEIGHT, LEFT, BOTTOM, TOP] = [520, 240, 46, 24, 8];

/** Round numbers that divide a range into about `count` parts. */
function ticks(low, high, count = 4) {
  const rough = (high - low || 1) / count;
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 5, 10].map((one) => one * power).find((one) => one >= rough);
  const found = [];
  for (let value = Math.ceil(low / step) * step; value <= high + step * 1e-6; value += step) found.push(Number(value.toPrecision(12)));
  return found;
}

/** 12300 as "12.3k" */
export function short(value) {
  const size = Math.abs(value);
  if (size >= 1e6) return `${Number((value / 1e6).toPrecision(3))}M`;
  if (size >= 1e4) return `${Number((value / 1e3).toPrecision(3))}k`;
  return size !== 0 && size < 1e-3 ? value.toExponential(1) : String(Number(value.toPrecision(3)));
}

/** An average that looks back, in which gaps stay gaps. */
function smoothed(points, far) {
  let mean = null;
  return points.map(([x, y]) => {
    mean = mean === null ? y : mean + (y - mean) * far;
    return [x, mean];
  });
}

/** A figure with one line per series: {name, points: [[x, y]], colour}; null where there is nothing to show. */
export function chart(title, series, { smooth: wanted = true } = {}) {
  const shown = series.filter((one) => one.points.length);
  if (!shown.length) return null;
  const smooth = shown.map((one) => ({ ...one, line: wanted ? smoothed(one.points, Math.min(1, 50 / one.points.length)) : one.points }));
  const [xs, ys] = [shown.flatMap((one) => one.points.map(([x]) => x)), smooth.flatMap((one) => one.line.map(([, y]) => y))];
  const [x0, x1] = [Math.min(...xs), Math.max(...xs)];
  const [low, high] = [Math.min(0, ...ys), Math.max(...ys) * 1.06 || 1];
  const x = (value) => LEFT + ((value - x0) / (x1 - x0 || 1)) * (WIDTH - LEFT - 6);
  const y = (value) => HEIGHT - BOTTOM - ((value - low) / (high - low)) * (HEIGHT - BOTTOM - TOP);
  const path = (points) => points.map(([a, b], at) => `${at ? "L" : "M"}${x(a).toFixed(1)} ${y(Math.min(high, b)).toFixed(1)}`).join("");
  const last = smooth.map((one) => `${one.name} ${short(one.line.at(-1)[1])}`).join(", ");
  const drawing = svg("svg", { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, role: "img", "aria-label": `${title}. Last: ${last}` });
  for (const value of ticks(low, high)) {
    drawing.append(svg("line", { class: "axis", x1: LEFT, x2: WIDTH - 6, y1: y(value), y2: y(value) }), svg("text", { class: "tick", x: LEFT - 7, y: y(value) + 4, "text-anchor": "end" }, short(value)));
  }
  for (const value of ticks(x0, x1)) drawing.append(svg("text", { class: "tick", x: x(value), y: HEIGHT - 6, "text-anchor": "middle" }, short(value)));
  for (const one of smooth) {
    if (wanted && shown.length < 3) drawing.append(svg("path", { class: "line faint", d: path(one.points), stroke: `var(${one.colour})` }));
    drawing.append(svg("path", { class: "line", d: path(one.line), stroke: `var(${one.colour})` }));
  }
  const legend = make("ul", {}, smooth.map((one) => {
    const mark = make("i");
    mark.style.background = `var(${one.colour})`;
    return make("li", {}, mark, make("span", {}, one.name), make("span", { class: "muted number" }, short(one.line.at(-1)[1])));
  }));
  return make("figure", { class: "chart" }, make("h3", {}, title, make("span", { class: "muted small" }, " over images seen")), drawing, legend);
}
