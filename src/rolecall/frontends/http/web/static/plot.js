// Plots of the last minutes, drawn as SVG.

import { say, t } from "./dom.js";

const NS = "http://www.w3.org/2000/svg";
const [LEFT, RIGHT, TOP, BOTTOM] = [34, 14, 8, 22];
const TIME = new Intl.DateTimeFormat("en-GB", { hour: "2-digit", minute: "2-digit" });

function svg(name, attributes = {}, text = null) {
  const element = document.createElementNS(NS, name);
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
  if (text !== null) element.textContent = text;
  return element;
}

/** The next round number from `value` up that can be divided by two and four into round numbers. */
function ceiling(value) {
  const size = 10 ** Math.floor(Math.log10(Math.max(4, value)));
  return [1, 2, 4, 6, 8, 10, 20, 40].map((part) => part * size).find((round) => round >= Math.max(4, value) && round % 4 === 0) ?? 4;
}

/** A stepped path through `points` ([x, y]). */
export function steps(points) {
  return points.map(([x, y], place) => (place ? `H${x.toFixed(1)}V${y.toFixed(1)}` : `M${x.toFixed(1)} ${y.toFixed(1)}`)).join("");
}

/**
 * A plot in `place`: `draw(points, {from, to, cap})` with points {at, value}; `kind` is "steps" or "bars"; `words`
 * describes a value.
 */
export function plot(place, kind, words) {
  const root = svg("svg", { role: "img" });
  place.append(root);
  let shown = { points: [], from: 0, to: 1 };

  function draw(points = shown.points, range = shown) {
    shown = { ...range, points };
    const { width, height } = root.getBoundingClientRect();
    if (!width) return;
    root.setAttribute("viewBox", `0 0 ${width} ${height}`);
    const top = ceiling(Math.max(shown.cap ?? 0, ...points.map((point) => Math.max(point.value ?? 0, point.high ?? 0))));
    const x = (at) => LEFT + ((at - shown.from) / (shown.to - shown.from)) * (width - LEFT - RIGHT);
    const y = (value) => height - BOTTOM - (value / top) * (height - TOP - BOTTOM);
    const made = [...grid(top, y, width), ...times(shown, x, height)];
    if (shown.cap) made.push(svg("line", { class: "cap", x1: LEFT, x2: width - RIGHT, y1: y(shown.cap), y2: y(shown.cap) }));
    if (kind === "bars") made.push(...bars(points, shown, x, y));
    else if (kind === "lines") made.push(...lines(points, x, y));
    else if (points.length) made.push(...curve(points, x, y));
    root.replaceChildren(...made);
    root.setAttribute("aria-label", points.length ? words(points.at(-1).value, points.at(-1)) : t("no_data"));
    shown.x = x;
    shown.y = y;
  }

  root.addEventListener("pointermove", (event) => hover(root, shown, event, words));
  root.addEventListener("pointerleave", () => root.querySelector(".hover")?.remove());
  new ResizeObserver(() => draw()).observe(place);
  return draw;
}

function grid(top, y, width) {
  return [0, top / 2, top].flatMap((value) => [
    svg("line", { class: "grid", x1: LEFT, x2: width - RIGHT, y1: y(value), y2: y(value) }),
    svg("text", { class: "axis", x: LEFT - 8, y: y(value) + 4, "text-anchor": "end" }, value),
  ]);
}

function times({ from, to }, x, height) {
  const step = to - from > 20_000_000 ? 14_400_000 : to - from > 420_000 ? 300_000 : 60_000;
  const made = [];
  for (let at = Math.ceil(from / step) * step; at <= to; at += step) {
    if (x(at) > LEFT + 8) made.push(svg("text", { class: "axis", x: x(at), y: height - 5, "text-anchor": "middle" }, TIME.format(at)));
  }
  return made;
}

function curve(points, x, y) {
  const path = steps([...points.map((point) => [x(point.at), y(point.value)])]);
  const [first, last] = [points[0], points.at(-1)];
  return [
    svg("path", { class: "area", d: `${path}V${y(0)}H${x(first.at)}Z` }),
    svg("path", { class: "curve", d: path }),
    svg("circle", { class: "mark", cx: x(last.at), cy: y(last.value), r: 4 }),
  ];
}

/** Two lines with gaps where nothing happened: `value`, and `high` above it. */
function lines(points, x, y) {
  return ["high", "value"].map((name) => {
    let path = "";
    let gap = true;
    for (const point of points) {
      if (point[name] == null) gap = true;
      else {
        path += `${gap ? "M" : "L"}${x(point.at).toFixed(1)} ${y(point[name]).toFixed(1)}`;
        if (gap) path += "h0.1";
        gap = false;
      }
    }
    return svg("path", { class: `curve ${name}`, d: path });
  });
}

/** Bars of parts, one bar for each of `bars` ({label, parts: [{name, place, value}]}); `place` numbers the colours. */
export function stacked(place) {
  const root = svg("svg", { role: "img" });
  place.append(root);
  let shown = [[], String];

  function draw(found = shown[0], words = shown[1]) {
    shown = [found, words];
    const { width, height } = root.getBoundingClientRect();
    if (!width || !found.length) return;
    const sums = found.map((bar) => bar.parts.reduce((sum, part) => sum + part.value, 0));
    const most = Math.max(...sums);
    const scale = most && most < 4 ? 10 ** Math.ceil(Math.log10(4 / most)) : 1;
    const top = most ? ceiling(most * scale) / scale : 1;
    const [left, step] = [64, (width - 64 - RIGHT) / found.length];
    const y = (value) => height - BOTTOM - (value / top) * (height - TOP - BOTTOM);
    const made = [0, top / 2, top].flatMap((value) => [
      svg("line", { class: "grid", x1: left, x2: width - RIGHT, y1: y(value), y2: y(value) }),
      svg("text", { class: "axis", x: left - 8, y: y(value) + 4, "text-anchor": "end" }, words(value)),
    ]);
    const every = Math.ceil(56 / step);
    found.forEach((bar, number) => {
      let below = 0;
      const at = left + number * step + step * 0.14;
      for (const part of bar.parts.filter((one) => one.value > 0)) {
        const piece = svg("rect", { class: `hue-${part.place}`, x: at, width: step * 0.72, y: y(below + part.value), height: Math.max(0.5, y(below) - y(below + part.value)) });
        piece.append(svg("title", {}, `${bar.label} ${part.name}: ${words(part.value)}`));
        made.push(piece);
        below += part.value;
      }
      if (number % every === 0) made.push(svg("text", { class: "axis", x: at + step * 0.36, y: height - 5, "text-anchor": "middle" }, bar.label));
    });
    root.replaceChildren(...made);
    root.setAttribute("aria-label", found.map((bar, number) => `${bar.label} ${words(sums[number])}`).join(", "));
  }

  new ResizeObserver(() => draw()).observe(place);
  return draw;
}

function bars(points, { span, to }, x, y) {
  const width = Math.max(2, x(span) - x(0) - 2);
  return points.filter((point) => point.value).map((point) => svg("rect", {
    class: "bar", x: x(point.at), y: y(point.value), width: Math.min(width, Math.max(2, x(to) - x(point.at))), height: Math.max(1, y(0) - y(point.value)), rx: Math.min(2, width / 4),
  }));
}

function hover(root, { points, x, y, span = 0 }, event, words) {
  if (!points.length) return;
  const left = event.clientX - root.getBoundingClientRect().left;
  const middle = (point) => x(point.at + span / 2);
  const near = points.reduce((best, point) => (Math.abs(middle(point) - left) < Math.abs(middle(best) - left) ? point : best));
  let group = root.querySelector(".hover");
  if (!group) {
    group = svg("g", { class: "hover" });
    group.append(svg("line", { class: "cross" }), svg("text", { class: "axis" }));
    root.append(group);
  }
  const [line, text] = group.children;
  const at = middle(near);
  const right = at > root.getBoundingClientRect().width / 2;
  for (const [key, value] of Object.entries({ x1: at, x2: at, y1: y(0), y2: TOP })) line.setAttribute(key, value);
  for (const [key, value] of Object.entries({ x: right ? at - 6 : at + 6, y: TOP + 8, "text-anchor": right ? "end" : "start" })) text.setAttribute(key, value);
  say(text, `${words(near.value, near)}, ${TIME.format(near.at)}`);
}
