"use strict";
// Two reports: what each says first, and site by site what is decided otherwise.
L.view("compare", "Compare", () => L.report.kind === "comparison", (root) => L.compare(root, L.report), () => L.report.changes.filter((change) => !["same", "renumbered"].includes(change[3])).length);
L.view("graphs", "Graphs", () => L.report.kind === "comparison" && L.report.a.graphs.length > 0 && L.report.b.graphs.length > 0,
  (root) => L.graphView(root, L.report.a, L.report.b));
for (const [id, name] of [["a", "A: all of it"], ["b", "B: all of it"]])
  L.view(id, name, () => L.report.kind === "comparison", (root) => L.one(root, L.report[id]));

L.CHANGES = { changed: "≠ decided otherwise", only_a: "− only in A", only_b: "+ only in B", renumbered: "≈ other numbers", same: "= the same" };

L.compare = (root, report) => {
  const sides = [report.a, report.b];
  const site = (at) => (change) => (change[1 + at] >= 0 ? sides[at].sites[change[1 + at]] : null);
  const [a, b] = [site(0), site(1)];
  const of = (side, show) => (change) => { const found = side(change); return found ? show(found) : "–"; };
  const pair = (name, show, width, right, spare) => [["A", a], ["B", b]].map(([letter, side]) => ({
    name: `${name} ${letter}`, width, right, spare, text: of(side, show), class: (change) => (!right && a(change) && b(change) && show(a(change)) !== show(b(change)) ? "changed" : ""),
    value: right ? (change) => { const found = side(change); return found ? { "after": L.number(found.time_after_us), MERE: L.number(found.mere) }[name] : null; } : undefined,
  }));
  const table = new L.Table([
    { name: "", title: "what differs", width: "minmax(160px, 0.6fr)", text: (change) => L.CHANGES[change[3]] },
    { name: "site", width: "minmax(170px, 1.6fr)", text: (change) => change[0] },
    ...pair("choice", L.choice, "minmax(160px, 1fr)"), ...pair("runs as", (found) => found.runs_as || found.outcome, "minmax(150px, 1fr)", false, true),
    ...pair("MERE", (found) => L.fixed(found.mere, 4), "84px", true), ...pair("after", (found) => L.us(found.time_after_us), "84px", true),
  ], (change) => L.h("div", { class: "pair" }, change[4].length > 0 && L.h("p", null, change[4].join("; ")), sides.map((side, at) => {
    const found = [a, b][at](change);
    return found && [L.h("h3", null, report.names[at]), L.siteDetails(found, { ...side, graphs: [] })];
  })), "sites of both");
  const state = { kind: report.changes.some((change) => !["same", "renumbered"].includes(change[3])) ? "differ" : "", words: "" };
  const update = () => table.set(report.changes.filter((change) => (!state.kind || (state.kind === "differ" ? !["same", "renumbered"].includes(change[3]) : change[3] === state.kind)) && change[0].toLowerCase().includes(state.words.toLowerCase())));
  const counts = Object.keys(L.CHANGES).map((kind) => [kind, `${L.CHANGES[kind]} (${report.changes.filter((change) => change[3] === kind).length})`]);
  const bare = sides.flatMap((side, at) => (side.sites.length ? [] : [`${"AB"[at]} is a ${side.kind}, and has no sites to compare: see all of it`]));
  root.append(L.summary(report), ...bare.map((words) => L.h("p", { class: "soft" }, words)), L.h("div", { class: "toolbar" },
    L.h("input", { type: "search", placeholder: "Search sites ( / )", "aria-label": "Search sites of both", oninput: (event) => { state.words = event.target.value; update(); } }),
    L.select("show", [["differ", "what is decided otherwise"], ["", "all"], ...counts], state.kind, (value) => { state.kind = value; update(); })), table.root);
  update();
  L.toRow = (key) => {
    const change = report.changes.find((each) => each[0] === key);
    if (!change) return;
    if (!table.items.includes(change)) { Object.assign(state, { kind: "", words: "" }); root.querySelector("select").value = ""; root.querySelector("input").value = ""; update(); }
    table.reveal(change);
  };
};

L.summary = (report) => {
  const rows = [["", (each, at) => `${"AB"[at]}: ${report.names[at]}`], ["made", (each) => each.made.when], ["loka", (each) => each.made.loka], ["torch", (each) => each.made.torch], ["processor", (each) => each.made.processor]];
  const verdict = (name, show) => rows.push([name, (each) => (each.verdict ? show(each.verdict) : "–")]);
  verdict("target", (said) => said.target);
  verdict("plan from", (said) => said.origin);
  verdict("sites lowered", (said) => (said.lowered === undefined ? said.sites : `${said.lowered} of ${said.sites}`));
  verdict("GEMMs", (said) => (said.gemm_before_us ? `${L.us(said.gemm_before_us)} → ${L.us(said.gemm_after_us)} (${(said.gemm_before_us / said.gemm_after_us).toFixed(2)}x${L.level(said) && `, ${L.level(said)}`})` : "–"));
  verdict("raced", (said) => (said.raced || []).join("; ") || "–");
  verdict("worst MERE", (said) => L.fixed(said.worst_mere, 4));
  verdict("warnings", (said) => said.warnings.join("; ") || "none");
  return L.h("table", { class: "plain summary" }, rows.map(([name, show]) => {
    const cells = [report.a, report.b].map(show);
    return L.h("tr", null, L.h("th", null, name), cells.map((cell) => L.h("td", { class: name && name !== "made" && cells[0] !== cells[1] ? "changed" : "" }, cell)));
  }));
};

// One of the two, with its views below one another.
L.one = (root, report) => {
  if (report.verdict) root.append(L.verdict(report));
  if (report.sites.length) {
    const table = new L.Table(L.siteColumns(report), (site) => L.siteDetails(site, { ...report, graphs: [] }), "sites");
    root.append(L.h("h2", null, "Sites"), table.root);
    table.set(report.sites);
  }
  if (report.stages.length) { root.append(L.h("h2", null, "Passes")); L.passes(root, report); }
  report.previews.forEach((preview) => L.preview(root, preview));
};
