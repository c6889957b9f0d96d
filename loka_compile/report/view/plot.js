"use strict";
// Error against time: each candidate of a site is a point; down and left is better.
L.scale = (low, high, from, to) => {
  const [a, b] = [Math.log10(low), Math.log10(high)];
  return (value) => from + ((Math.log10(value) - a) / (b - a || 1)) * (to - from);
};

// The least and the largest of any number of values: as arguments of one call, 100,000 are too many.
L.extent = (values) => values.reduce(([low, high], value) => [Math.min(low, value), Math.max(high, value)], [Infinity, -Infinity]);

L.decades = (low, high) => {
  const ticks = [];
  const steps = Math.log10(high / low) > 2.2 ? [1] : [1, 2, 5];
  for (let power = Math.floor(Math.log10(low)); power <= Math.ceil(Math.log10(high)); power += 1)
    for (const step of steps) {
      const tick = step * 10 ** power;
      if (tick >= low * 0.999 && tick <= high * 1.001) ticks.push(tick);
    }
  return ticks;
};

// A place for a name near its point, where it covers neither a point nor another name.
L.freeBox = (px, py, wide, used, [x1, y1, x2, y2]) => {
  const tries = [];
  for (let away = 0; away < 9; away += 1)
    for (const side of [1, -1]) for (const down of away ? [1, -1] : [0]) tries.push([side > 0 ? px + 10 : px - 10 - wide, py - 8 + down * away * 15]);
  const boxes = tries.map(([left, top]) => [left, top, left + wide, top + 15]).filter((box) => box[0] >= x1 && box[1] >= y1 && box[2] <= x2 && box[3] <= y2);
  const covers = (a) => used.some((b) => a[0] < b[2] && b[0] < a[2] && a[1] < b[3] && b[1] < a[3]);
  return boxes.find((box) => !covers(box)) || boxes[0] || [px + 10, py - 8, px + 10 + wide, py + 7];
};

L.candidatePlot = (site, text, budget) => {
  const points = site.candidates.map(([name, mere, , , time, , chosen]) =>
    ({ name: text(name), mere: L.number(mere), time: L.number(time), chosen: Boolean(chosen) }))
    .filter((point) => point.time > 0 && Number.isFinite(point.time) && (point.mere !== null && Number.isFinite(point.mere) || point.name === "keep"));
  if (points.length < 2) return null;
  const [width, height, left, bottom] = [540, 250, 58, 40];
  const errors = points.map((point) => point.mere).filter((mere) => mere > 0);
  const floor = Math.min(1e-3, ...errors) / 2;
  const top = Math.max(0.5, ...errors) * 1.6;
  const slowest = Math.max(...points.map((point) => point.time)) * 2.2;
  const fastest = Math.min(...points.map((point) => point.time)) / 1.3;
  const x = L.scale(fastest, slowest, left, width - 10);
  const y = L.scale(floor, top, height - bottom, 10);
  const kept = points.find((point) => point.name === "keep");
  const marks = [];
  for (const tick of L.decades(fastest, slowest))
    marks.push(L.svg("line", { class: "grid", x1: x(tick), x2: x(tick), y1: 10, y2: height - bottom }),
      L.svg("text", { x: x(tick), y: height - bottom + 15, "text-anchor": "middle" }, L.short(tick)));
  for (const tick of L.decades(floor, top).filter((each) => Math.log10(each) % 1 === 0))
    marks.push(L.svg("line", { class: "grid", x1: left, x2: width - 10, y1: y(tick), y2: y(tick) }),
      L.svg("text", { x: left - 6, y: y(tick) + 4, "text-anchor": "end" }, L.short(tick)));
  if (budget) marks.push(L.svg("line", { x1: left, x2: width - 10, y1: y(budget), y2: y(budget), stroke: L.colours[5], "stroke-dasharray": "5 4" }),
    L.svg("text", { x: width - 12, y: y(budget) - 4, "text-anchor": "end" }, `budget ${budget}`));
  if (kept) marks.push(L.svg("line", { x1: x(kept.time), x2: x(kept.time), y1: 10, y2: height - bottom, stroke: L.grey, "stroke-dasharray": "5 4" }));
  const at = points.sort((a, b) => b.chosen - a.chosen).map((point) => ({ ...point, px: x(point.time), py: y(Math.max(point.mere || 0, floor)) }));
  const used = at.map(({ px, py }) => [px - 7, py - 7, px + 7, py + 7]);
  if (budget) used.push([width - 80, y(budget) - 17, width - 10, y(budget) - 1]);
  const dots = at.map((point) => {
    const { px, py } = point;
    const box = L.freeBox(px, py, 7 * point.name.length, used, [left, 4, width - 4, height - bottom - 2]);
    used.push(box);
    const [tx, ty] = [box[0], box[3] - 3];
    const near = [Math.max(box[0], Math.min(px, box[2])), Math.max(box[1], Math.min(py, box[3]))];
    return L.svg("g", null,
      L.svg("title", null, `${point.name}: MERE ${L.fixed(point.mere, 4)}, ${L.us(point.time)}`),
      Math.hypot(near[0] - px, near[1] - py) > 12 && L.svg("line", { class: "axis", x1: px, y1: py, x2: near[0], y2: near[1] }),
      point.chosen
        ? L.svg("rect", { x: px - 6, y: py - 6, width: 12, height: 12, fill: L.colours[2], transform: `rotate(45 ${px} ${py})` })
        : L.svg("circle", { cx: px, cy: py, r: 5, fill: point.name === "keep" ? L.grey : L.colours[0] }),
      L.svg("text", { x: tx, y: ty, "font-weight": point.chosen ? 700 : 400 }, point.name));
  });
  return L.svg("svg", { width, height, viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": "error against time of the candidates" },
    marks, L.svg("line", { class: "axis", x1: left, x2: width - 10, y1: height - bottom, y2: height - bottom }),
    L.svg("line", { class: "axis", x1: left, x2: left, y1: 10, y2: height - bottom }), dots,
    L.svg("text", { x: (left + width) / 2, y: height - 6, "text-anchor": "middle" }, "µs a call (◆ chosen; down and left is better)"),
    L.svg("text", { x: 12, y: (height - bottom) / 2, "text-anchor": "middle", transform: `rotate(-90 12 ${(height - bottom) / 2})` }, "MERE"));
};

// Magnitudes of an operand: its median to its largest on a scale of powers of ten.
L.quantilePlot = (operands) => {
  const rows = [["left", operands.lhs], ["right", operands.rhs]];
  const values = rows.flatMap(([, s]) => [...s.quantiles.map((q) => L.number(q[1])), L.number(s.amax)]).filter((v) => v > 0 && Number.isFinite(v));
  if (!values.length) return null;
  const [low, high] = [Math.min(...values) / 1.5, Math.max(...values) * 1.8];
  const [width, left] = [540, 58];
  const x = L.scale(low, high, left, width - 14);
  return L.svg("svg", { width, height: 116, viewBox: `0 0 ${width} 116`, role: "img", "aria-label": "magnitudes of the operands" },
    L.decades(low, high).filter((t) => Math.log10(t) % 1 === 0 || high / low < 100).map((tick) => [
      L.svg("line", { class: "grid", x1: x(tick), x2: x(tick), y1: 4, y2: 92 }),
      L.svg("text", { x: x(tick), y: 108, "text-anchor": "middle" }, L.short(tick))]),
    rows.map(([name, stats], at) => {
      const y = 26 + at * 44;
      const marks = stats.quantiles.map(([level, value]) => [level === 0.5 ? "median" : `${100 * level} %`, L.number(value)]);
      marks.push(["amax", L.number(stats.amax)]);
      const seen = marks.filter(([, value]) => value > 0 && Number.isFinite(value));
      if (!seen.length) return L.svg("text", { x: left, y }, `${name}: all zero`);
      let last = -100;
      return L.svg("g", null, L.svg("text", { x: left - 8, y: y + 4, "text-anchor": "end" }, name),
        L.svg("line", { x1: x(seen[0][1]), x2: x(seen.at(-1)[1]), y1: y, y2: y, stroke: L.colours[at], "stroke-width": 3 }),
        seen.map(([label, value], place) => {
          const px = x(value);
          const room = px - last > 52 || place === seen.length - 1;
          if (room) last = px;
          return L.svg("g", null, L.svg("title", null, `${label}: ${L.short(value)}`),
            L.svg("circle", { cx: px, cy: y, r: label === "amax" ? 6 : 4, fill: L.colours[at] }),
            room && L.svg("text", { x: px, y: y + (place === seen.length - 1 ? -9 : 18), "text-anchor": "middle" }, label));
        }));
    }));
};
