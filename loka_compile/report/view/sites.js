"use strict";
// The table of sites: search, filter, sort, unfold.
L.view("sites", "Sites", () => L.report.sites.length > 0, (root) => L.sites(root, L.report), () => L.report.sites.length);

L.revealSite = (key) => { L.open(L.report.kind === "comparison" ? "compare" : "sites"); L.toRow(key); };

L.siteColumns = (report) => {
  const text = L.texts(report);
  if (report.kind === "profile") return L.profileColumns(report, text);
  return [
    { name: "", title: "outcome", width: "34px", text: (s) => s.outcome, show: (s) => L.signs[s.outcome], class: (s) => `outcome-${s.outcome}` },
    { name: "site", width: "minmax(170px, 1.2fr)", text: (s) => s.key.replace(/:output$/, "") },
    { name: "shape", spare: true, width: "minmax(190px, 1fr)", text: (s) => s.shape, value: (s) => s.flops, title: "batch (M, K) @ (K, N); sorted by FLOPs" },
    { name: "choice", width: "minmax(160px, 0.8fr)", text: L.choice },
    { name: "runs as", spare: true, width: "minmax(160px, 0.8fr)", text: (s) => s.runs_as || (s.outcome === "kept" ? "–" : s.outcome.toUpperCase()), class: (s) => `outcome-${s.outcome}` },
    { name: "MERE", width: "72px", right: true, text: (s) => L.fixed(s.mere, 4), value: (s) => L.number(s.mere), title: "mean relative error with a floor" },
    { name: "SQNR", width: "64px", right: true, text: (s) => L.fixed(s.sqnr_db, 1), value: (s) => L.number(s.sqnr_db), title: "signal over noise in dB" },
    { name: "before", width: "84px", right: true, text: (s) => L.us(s.time_before_us), value: (s) => L.number(s.time_before_us), title: "one call of the GEMM as the model has it" },
    { name: "after", width: "84px", right: true, text: (s) => L.us(s.time_after_us), value: (s) => L.number(s.time_after_us), title: "one call as chosen, casts included" },
    { name: "x", width: "66px", right: true, text: (s) => L.times(s.speedup), value: (s) => L.number(s.speedup), title: "before over after" },
    { name: "reason", width: "minmax(120px, 3fr)", text: (s) => text(s.reason) },
  ];
};

// Nothing is decided in a profile: a site's shape, and what each recipe would make of it.
L.profileColumns = (report, text) => {
  const error = (site, name) => (site.candidates.find((each) => text(each[0]) === name) || [null, null])[1];
  const recipes = [...new Set(report.sites.flatMap((site) => site.candidates.map((each) => text(each[0]))))];
  return [{ name: "", title: "nothing is decided", width: "24px", text: () => "·" },
    { name: "site", width: "minmax(120px, 1.2fr)", text: (s) => s.key.replace(/:output$/, "") },
    { name: "shape", spare: true, width: "minmax(190px, 1fr)", text: (s) => s.shape, value: (s) => s.flops, title: "batch (M, K) @ (K, N); sorted by FLOPs" },
    ...recipes.map((name) => ({ name, title: `MERE of ${name}`, width: `${Math.max(80, 8 * name.length + 16)}px`, right: true, text: (s) => L.fixed(error(s, name), 4), value: (s) => L.number(error(s, name)) }))];
};

L.sites = (root, report) => {
  const text = L.texts(report);
  const table = new L.Table(L.siteColumns(report), (site) => L.siteDetails(site, report), "sites");
  const state = { words: "", outcome: "", recipe: "", role: "" };
  const found = L.h("span", { class: "soft small", id: "found", "aria-live": "polite" });
  const hay = report.sites.map((s) => `${s.key} ${s.shape} ${L.choice(s)} ${s.runs_as} ${s.outcome} ${s.source} ${text(s.reason)}`.toLowerCase());
  const update = () => {
    const words = state.words.toLowerCase().split(/\s+/).filter(Boolean);
    const shown = report.sites.filter((site, at) => (!state.outcome || site.outcome === state.outcome) && (!state.recipe || site.recipe === state.recipe) &&
      (!state.role || site.role === state.role) && words.every((word) => hay[at].includes(word)));
    L.show(found, `${L.count(shown.length)} of ${L.count(report.sites.length)}`);
    table.set(shown);
  };
  const choices = (name) => [["", "all"], ...[...new Set(report.sites.map((site) => site[name]))].filter(Boolean).sort().map((value) =>
    [value, `${name === "outcome" ? `${L.signs[value]} ` : ""}${value} (${report.sites.filter((site) => site[name] === value).length})`])];
  const filter = (name) => L.select(name, choices(name), "", (value) => { state[name] = value; update(); });
  const search = L.h("input", { type: "search", id: "search", placeholder: "Search sites and reasons ( / )", "aria-label": "Search sites", oninput: (event) => { state.words = event.target.value; update(); } });
  root.append(L.h("div", { class: "toolbar" }, search, filter("outcome"), filter("recipe"), filter("role"), found, L.h("span", { class: "soft small" }, report.kind === "profile" ? "Figures: MERE, the relative error of a recipe. A row opens." : "A row opens: why, and every candidate.")), table.root);
  update();
  L.toRow = (key) => {
    const site = report.sites.find((each) => each.key === key);
    if (!site) return;
    if (!table.reveal(site)) { search.value = ""; Object.assign(state, { words: "", outcome: "", recipe: "", role: "" }); root.querySelectorAll("select").forEach((box) => { box.value = ""; }); update(); table.reveal(site); }
    table.scroll.focus({ preventScroll: true });
  };
};
