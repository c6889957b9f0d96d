"use strict";
// What matters first: what is wrong, how much faster and on what evidence, how exact, how much of the model.
L.view("verdict", "Verdict", () => Boolean(L.report.verdict), (root) => root.append(L.verdict(L.report)));

L.verdict = (report) => {
  const said = report.verdict;
  const level = L.level(said);
  const ratio = said.gemm_before_us && said.gemm_after_us ? said.gemm_before_us / said.gemm_after_us : null;
  const raced = said.raced || [];
  const card = (name, value, more, kind, wide) => L.h("div", { class: `card ${wide ? "wide" : ""}` }, L.h("div", { class: "name" }, name),
    L.h("div", { class: `value ${kind || ""}` }, value), L.h("div", { class: "more" }, more));
  const parts = [];
  if (said.warnings.length) parts.push(L.h("ul", { class: "warnings", role: "alert" }, said.warnings.map((each) => L.h("li", null, `✖ ${each}`))));
  const cards = [];
  if (raced.length) {
    // The words are trial/race.py's; any others are shown as they are.
    const won = raced[0].match(/^(at least )?(\d+\.\d+x) the unplanned graph's speed/);
    cards.push(card("whole graph, against the same graph with nothing lowered", won ? `${won[1] ? "≥ " : ""}${won[2]}` : said.lowered ? "see below" : "nothing lowered",
      [L.h("span", { class: "level" }, "raced"), ` ${raced.join("; ")}`], won ? "good" : "", true));
  }
  if (ratio) cards.push(card(`GEMMs, ${L.us(said.gemm_before_us)} → ${L.us(said.gemm_after_us)}`, `${ratio.toFixed(2)}x`,
    [level && L.h("span", { class: "level" }, level), ` the sum over ${said.gemm_timed < said.sites ? `${said.gemm_timed} of ` : ""}${said.sites} site${said.sites === 1 ? "" : "s"}${said.gemm_timed < said.sites ? " (of the others no time is known)" : ""}, each by itself${raced.length ? "" : "; the whole graph was not raced"}`]));
  if (said.lowered !== undefined) cards.push(card("sites lowered", `${said.lowered} of ${said.sites}`, [L.recipes(report), L.undecided(report)].filter(Boolean).join("; ")));
  else cards.push(card("sites", said.sites, ""));
  if (said.worst_mere !== undefined && said.worst_mere !== null) cards.push(card("worst error (MERE) of what is lowered", L.fixed(said.worst_mere, 4),
    [said.budget ? `budget ${said.budget.mere}; at ` : "at ", L.h("span", { class: "mono small" }, said.worst_site)]));
  if (said.missing) cards.push(card("planned, and not in the code", said.missing, "see the warnings above", "bad"));
  if (said.target) cards.push(card("target", said.target, said.device ? `compiled on ${said.device}` : ""));
  parts.push(L.h("div", { class: "cards" }, cards), L.savings(report));
  parts.push(L.h("h2", null, "Made with"), L.h("dl", { class: "facts" },
    [["plan from", said.origin], ["graphs", Object.entries(said.graphs || {}).map(([name, kind]) => `${name} (${kind})${(said.inputs || {})[name] ? `, called with ${said.inputs[name]}` : ""}`).join("; ")],
      ["times", (said.time_sources || []).join("; ")], ["cost", said.cost], ...Object.entries(report.made),
      ...Object.entries(said.pins || {}).map(([name, value]) => [`pinned: ${name}`, value])]
      .filter(([, value]) => value).map(([name, value]) => [L.h("dt", null, name), L.h("dd", null, value)])));
  if (said.notes.length) parts.push(L.h("h2", null, "Notes"), L.h("ul", { class: "notes" }, said.notes.map((note) => L.h("li", null, note))));
  return L.h("div", null, parts);
};

// Of how many the plan says nothing: an online session's before there is one, gradients where none were seen.
L.undecided = (report) => {
  const count = report.kind === "compilation" ? report.sites.filter((site) => site.outcome === "kept" && !site.candidates.length).length : 0;
  return !count ? "" : count === report.sites.length ? "no plan yet" : `the plan says nothing of ${count}`;
};

// On what evidence the times of single GEMMs stand.
L.level = (said) => {
  const sources = said.time_sources || [];
  return sources.some((source) => source.includes("measured")) ? "measured" : sources.length ? "modelled" : "";
};

L.recipes = (report) => {
  const counts = new Map();
  for (const site of report.sites) if (["lowered", "planned"].includes(site.outcome)) counts.set(site.recipe, (counts.get(site.recipe) || 0) + 1);
  return [...counts].sort((a, b) => b[1] - a[1]).map(([recipe, count]) => `${count} ${recipe}`).join(", ");
};

// Where the time goes, and what was won: the sites that take most of it.
L.savings = (report) => {
  const lowered = (site) => ["lowered", "planned"].includes(site.outcome);
  const timed = report.sites.filter((site) => L.finite(site.time_before_us) && site.outcome !== "absent");
  if (!timed.length) return null;
  const most = [...timed].sort((a, b) => b.time_before_us - a.time_before_us).slice(0, 12);
  const longest = most[0].time_before_us;
  const after = (site) => (lowered(site) && L.finite(site.time_after_us) ? site.time_after_us : site.time_before_us);
  return L.h("div", null, L.h("h2", null, "Where the GEMMs' time goes"),
    L.h("p", { class: "soft small" }, "Grey: as the model has it. Blue: as chosen. The sites that take most of it first."),
    L.h("div", { class: "bars" }, most.map((site) => [
      L.h("span", { class: "mono small" }, site.key),
      L.h("div", { title: `${L.us(site.time_before_us)} → ${L.us(after(site))}` },
        L.h("div", { class: "bar old", style: { width: `${100 * site.time_before_us / longest}%`, height: "7px" } }),
        L.h("div", { class: "bar", style: { width: `${100 * after(site) / longest}%`, height: "7px" } })),
      L.h("span", { class: "small" }, `${L.us(site.time_before_us)} → ${L.us(after(site))} ${lowered(site) ? L.choice(site) : "kept"}`)])));
};
