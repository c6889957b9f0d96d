"use strict";
// An online session over its calls: the errors that lowered sites were seen with, the budget, and what happened.
L.view("online", "Online", () => L.report.online.length > 0, (root) => L.report.online.forEach((session) => L.online(root, session)));

L.EVENTS = { planned: ["●", "#0072b2"], demoted: ["▼", "#d55e00"], grown: ["▲", "#9048fc"], "started over": ["↺", "#e69f00"] };

L.online = (root, session) => {
  const seen = Object.entries(session.seen);
  const card = (name, value, more) => L.h("div", { class: "card" }, L.h("div", { class: "name" }, name), L.h("div", { class: "value" }, value), L.h("div", { class: "more" }, more));
  root.append(L.h("h2", null, session.graph), L.h("p", null, session.status),
    L.h("div", { class: "cards" }, card("calls since the plan", L.count(session.calls), ""), card("measured again", L.count(session.measured), ""),
      card("measuring takes", L.percent(L.number(session.overhead)), `of the calls' time; budget ${L.percent(L.number(session.budget))}`),
      card("demoted", session.events.filter((event) => event[1] === "demoted").length, "sites that left their error budget")),
    seen.length ? L.drift(session, seen) : L.h("p", { class: "soft" }, "No lowered site was measured again so far, so no errors are drawn."),
    L.h("h3", null, "What happened"), L.h("ul", { class: "notes" }, session.events.map(([calls, kind, words]) => L.h("li", null, L.h("strong", { style: { color: "inherit" } }, `${L.EVENTS[kind][0]} ${kind}`), ` at call ${L.count(calls)}: ${words}`))));
};

L.drift = (session, seen) => {
  const [width, height, left, bottom] = [1340, 340, 60, 46];
  const last = L.extent([1, session.calls, ...seen.flatMap(([, found]) => found.map((each) => each[0])), ...session.events.map((event) => event[0])])[1];
  const errors = seen.flatMap(([, found]) => found.map((each) => L.number(each[1]))).filter((mere) => mere > 0 && Number.isFinite(mere));
  const budget = L.finite(session.max_mere); // none where it was lifted
  const [least, most] = L.extent(budget ? [...errors, budget / 50, budget * 1.5] : errors.length ? errors : [0.001, 1]);
  const [low, top] = [least / 1.3, most * 1.2];
  const x = (calls) => left + (calls / last) * (width - left - 200);
  const y = L.scale(low, top, height - bottom, 16);
  const within = (mere) => (mere === "nan" ? top : Math.min(Math.max(L.number(mere) || low, low), top));
  const worst = ([, found]) => L.extent(found.map((each) => within(each[1])))[1];
  const shown = seen.filter(([, found]) => found.length).sort((a, b) => worst(b) - worst(a)).slice(0, 8);
  const used = [];
  return L.h("div", { class: "steps" }, L.svg("svg", { width, height, viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": "errors of lowered sites over calls" },
    L.decades(low, top).filter((tick) => Math.log10(tick) % 1 === 0).map((tick) => [L.svg("line", { class: "grid", x1: left, x2: width - 200, y1: y(tick), y2: y(tick) }), L.svg("text", { x: left - 6, y: y(tick) + 4, "text-anchor": "end" }, L.short(tick))]),
    [0, 0.25, 0.5, 0.75, 1].map((share) => L.svg("text", { x: x(share * last), y: height - bottom + 16, "text-anchor": "middle" }, L.count(Math.round(share * last)))),
    budget && [L.svg("line", { x1: left, x2: width - 200, y1: y(budget), y2: y(budget), stroke: "#d55e00", "stroke-dasharray": "5 4" }),
      L.svg("text", { x: left + 6, y: y(budget) - 5 }, `budget ${budget}`)],
    session.events.map(([calls, kind, words]) => L.svg("g", null, L.svg("title", null, `${kind} at call ${calls}: ${words}`), L.svg("line", { x1: x(calls), x2: x(calls), y1: 16, y2: height - bottom, stroke: L.EVENTS[kind][1] }), L.svg("text", { x: x(calls), y: 13, "text-anchor": "middle" }, L.EVENTS[kind][0]))),
    shown.map(([site, found], at) => {
      const colour = L.colours[at % L.colours.length];
      const [calls, mere] = found.at(-1);
      let ty = y(within(mere)) + 4;
      while (used.some((other) => Math.abs(other - ty) < 14)) ty += 14;
      used.push(ty);
      return L.svg("g", null, L.svg("title", null, site), L.svg("polyline", { points: found.map(([c, m]) => `${x(c)},${y(within(m))}`).join(" "), fill: "none", stroke: colour, "stroke-width": 1.5 }),
        found.map(([c, m]) => L.svg("circle", { cx: x(c), cy: y(within(m)), r: 3, fill: colour })),
        L.svg("line", { x1: x(calls), y1: y(within(mere)), x2: width - 196, y2: ty - 4, stroke: colour, opacity: 0.5 }), L.svg("text", { x: width - 192, y: ty }, site.length > 27 ? `…${site.slice(-26)}` : site));
    }),
    L.svg("text", { x: (left + width - 200) / 2, y: height - 8, "text-anchor": "middle" }, "calls since the plan"), L.svg("text", { x: 14, y: (height - bottom) / 2, "text-anchor": "middle", transform: `rotate(-90 14 ${(height - bottom) / 2})` }, "MERE, seen again")));
};
