"use strict";
// What a site's row opens to: why, all candidates, what passes did and refused, and the operands.
L.siteDetails = (site, report) => {
  const text = L.texts(report);
  const budget = report.verdict && report.verdict.budget ? L.finite(report.verdict.budget.mere) : null;
  const facts = [["why", text(site.reason)], ["module", site.module], ["made at", site.source],
    ["GEMM", `${site.op} ${site.shape} in ${site.dtype}`], ["behind it", site.epilogue], ["runs as", site.runs_as],
    ["median error", site.median_rel === null ? "" : L.fixed(site.median_rel, 4)],
    ["times", text(site.time_source)], ["by batch", site.ranges.join("; ")], ["graphs", site.graphs.join(", ")]];
  const plot = L.candidatePlot(site, text, budget);
  return L.h("div", { class: "site" },
    L.h("div", null,
      L.h("dl", { class: "facts" }, facts.filter(([, value]) => value).map(([name, value]) => [L.h("dt", null, name), L.h("dd", null, value)])),
      plot && [L.h("h3", null, "Error against time"), plot],
      L.operands(site), L.steps(site, text),
      report.graphs.length > 0 && site.graphs.length > 0 && L.h("p", null, L.h("button", { type: "button", onclick: () => L.openSite(site.key) }, "Show it in the graph"))),
    L.h("div", null, L.candidateTable(site, text)));
};

L.candidateTable = (site, text) => {
  if (!site.candidates.length) return null;
  const best = (each) => [!each[6], L.number(each[4]) || Infinity];
  const rows = [...site.candidates].sort((a, b) => best(a)[0] - best(b)[0] || best(a)[1] - best(b)[1]);
  if (rows.every((each) => each[4] === null && each[5] < 0 && !each[6])) // a profile: nothing was timed or decided
    return [L.h("h3", null, `Error of ${rows.length} recipes`), L.h("table", { class: "plain candidates" },
      L.h("thead", null, L.h("tr", null, L.h("th", null, "recipe"), ["MERE", "SQNR dB", "median error"].map((name) => L.h("th", { class: "right" }, name)))),
      L.h("tbody", null, rows.map(([name, mere, sqnr, median]) => L.h("tr", null, L.h("td", { class: "mono" }, text(name)), L.h("td", { class: "right" }, L.fixed(mere, 4)), L.h("td", { class: "right" }, L.fixed(sqnr, 1)), L.h("td", { class: "right" }, L.fixed(median, 4))))))];
  return [L.h("h3", null, `All ${rows.length} candidates`), L.h("table", { class: "plain candidates" },
    L.h("thead", null, L.h("tr", null, L.h("th", null, "candidate"), ["MERE", "SQNR dB", "time"].map((name) => L.h("th", { class: "right" }, name)), L.h("th", null, "why not"))),
    L.h("tbody", null, rows.map(([name, mere, sqnr, , time, reason, chosen]) => L.h("tr", { class: chosen ? "chosen" : "" },
      L.h("td", { class: "mono" }, text(name)), L.h("td", { class: "right" }, L.fixed(mere, 4)), L.h("td", { class: "right" }, L.fixed(sqnr, 1)),
      L.h("td", { class: "right" }, L.us(time)), L.h("td", null, chosen ? "chosen" : text(reason))))))];
};

L.steps = (site, text) => {
  const row = (sign, parts) => L.h("li", null, `${sign} `, L.h("strong", null, text(parts[0])), ` on ${text(parts[1])}: `, parts[2]);
  const done = site.done.map((each) => row("✔", [each[0], each[1], `${text(each[2])}${text(each[3]) ? ` (${text(each[3])})` : ""}`]));
  const refused = site.refusals.map((each) => row("✖", [each[0], each[1], `${text(each[3])}${text(each[2]) ? ` [${text(each[2])}]` : ""}`]));
  return (done.length || refused.length) ? [L.h("h3", null, "Passes: what each did, and what each refused"), L.h("ul", { class: "notes" }, done, refused)] : null;
};

L.operands = (site) => {
  const known = site.operands;
  if (!known) return null;
  const line = (name, stats) => {
    const faults = [stats.non_finite && `${L.count(stats.non_finite)} NOT FINITE`, stats.fp16_overflows && `${L.count(stats.fp16_overflows)} beyond fp16`].filter(Boolean).join(", ");
    return [L.h("dt", null, name), L.h("dd", null, `amax ${L.short(stats.amax)}, mean ${L.short(stats.mean)}, std ${L.short(stats.std)}, kurtosis ${L.short(stats.kurtosis)}; ` +
      `${L.count(stats.zero_rows)} of ${L.count(stats.rows)} rows are zero; ${L.percent(L.number(stats.fp8_underflow))} below e4m3; drawn from ${stats.model || "nothing"}${stats.fallback ? ` (${stats.fallback})` : ""}`,
    faults && L.h("strong", { class: "bad" }, ` ${faults}`))];
  };
  const recipes = Object.keys(known.real);
  const segments = Object.entries(known.segments).map(([name, each]) => [name, each.rows, Math.max(0, ...Object.values(each.mere).map((v) => L.number(v)))]).sort((a, b) => b[2] - a[2]).slice(0, 12);
  return [L.h("h3", null, `Operands, over ${L.count(known.calls)} call${known.calls === 1 ? "" : "s"}`), L.quantilePlot(known),
    L.h("dl", { class: "facts" }, line("left", known.lhs), line("right", known.rhs)),
    recipes.length > 0 && L.h("p", { class: "small soft" }, "MERE on real operands, and on drawn ones: ", recipes.map((name) => `${name} ${L.fixed(known.real[name], 4)} | ${L.fixed(known.drawn[name], 4)}`).join("; ")),
    segments.length > 0 && [L.h("h3", null, "Worst segments (highest MERE of any recipe)"), L.h("table", { class: "plain" }, segments.map(([name, rows, mere]) => L.h("tr", null,
      L.h("td", null, name), L.h("td", { class: "right" }, `${L.count(rows)} rows`), L.h("td", { class: "right" }, L.fixed(mere, 4)))))]];
};
