"use strict";
// Numbers as people read them.
L.finite = (value) => { const found = L.number(value); return Number.isFinite(found) ? found : null; };
L.number = (value) => (typeof value === "string" ? { inf: Infinity, "-inf": -Infinity }[value] ?? NaN : value);

L.fixed = (value, digits) => {
  value = L.number(value);
  if (value === null || value === undefined) return "–";
  if (!Number.isFinite(value)) return value === Infinity ? "∞" : String(value);
  const least = 10 ** -digits;
  return value > 0 && value < least / 2 ? `<${least.toFixed(digits)}` : value.toFixed(digits);
};

L.short = (value) => {
  value = L.number(value);
  if (value === null || value === undefined) return "–";
  if (!Number.isFinite(value)) return value === Infinity ? "∞" : String(value);
  const size = Math.abs(value);
  if (size !== 0 && (size < 1e-3 || size >= 1e6)) return value.toExponential(2);
  return String(Number(value.toPrecision(3)));
};

L.us = (value) => {
  value = L.number(value);
  if (value === null || value === undefined) return "–";
  if (!Number.isFinite(value)) return value === Infinity ? "∞" : String(value);
  if (value >= 1e6) return `${(value / 1e6).toFixed(2)} s`;
  return value >= 1e4 ? `${(value / 1e3).toFixed(1)} ms` : value >= 99.95 ? `${value.toFixed(0)} µs` : `${value.toFixed(1)} µs`;
};

L.bytes = (value) => {
  const units = ["B", "kB", "MB", "GB", "TB"];
  let at = 0;
  while (value >= 1000 && at < units.length - 1) { value /= 1000; at += 1; }
  return `${value >= 100 || at === 0 ? value.toFixed(0) : value.toFixed(1)} ${units[at]}`;
};

L.times = (value) => (value === null || value === undefined ? "–" : `${L.fixed(value, 2)}x`);
L.percent = (value) => (value === Infinity ? "∞" : `${(100 * value).toFixed(value < 0.0995 ? 1 : 0)} %`);
L.count = (value) => value.toLocaleString("en");
L.choice = (site) => (site.provider ? `${site.recipe}/${site.provider}` : site.recipe);

// Six of Okabe and Ito's colours and two more, which colour-blind people tell apart (held by a test); every use has a text
// or a sign beside it.
L.colours = ["#0072b2", "#e69f00", "#009e73", "#cc79a7", "#56b4e9", "#d55e00", "#a0522d", "#9048fc"];
L.grey = "#646b73";

L.signs = {
  lowered: "●", planned: "●", kept: "○", missing: "✖", refused: "◇", gone: "◌", pending: "…", absent: "–", profiled: "·",
};
