"use strict";
// What is known of one operation, or of a module.
L.nodeDetails = (panel, unit, owner) => {
  const { snapshot, text, report, graph } = panel;
  if (typeof unit !== "number") return L.moduleDetails(panel, unit, owner);
  const [line, code] = text(snapshot.line[unit]).split("\t");
  const made = text(snapshot.made[unit]);
  const origins = snapshot.origins[unit].map(text);
  const site = text(snapshot.site[unit]);
  const link = (label, run) => L.h("button", { type: "button", class: "link mono", onclick: run }, label);
  const nodes = (places) => places.map((at, place) => [place ? ", " : "", link(snapshot.names[at], () => owner.pick(panel, at, true))]);
  const users = snapshot.inputs.flatMap((inputs, at) => (inputs.includes(unit) ? [at] : []));
  const facts = [
    ["operator", L.h("span", { class: "mono" }, text(snapshot.target[unit]))], ["makes", text(snapshot.type[unit])],
    ["writes", snapshot.bytes[unit] ? L.bytes(snapshot.bytes[unit]) : ""], ["module", text(snapshot.module[unit])], ["part", text(snapshot.phase[unit])],
    ["line", line], ["site", site && link(site, () => L.revealSite(site))],
    ["made by", made ? `the pass ${made}` : snapshot.name === "after" ? "no pass: it is as it was" : ""],
    ["from", made && origins.length ? origins.map((name, at) => [at ? ", " : "", link(name, () => owner.find(name))]) : made ? "nothing that it took away" : ""],
    ["reads", nodes(snapshot.inputs[unit])], ["read by", nodes(users.slice(0, 20))],
  ];
  const kernels = [...new Set(snapshot.kernels[unit])].map((place) => [graph.kernels[place >= 0 ? place : ~place], place >= 0]);
  const sure = kernels.every((each) => each[1]);
  return L.h("div", null, L.h("h3", { class: "mono" }, snapshot.names[unit]),
    code && L.h("pre", { class: "line" }, code),
    L.facts(facts),
    kernels.length > 0 && [L.h("h3", null, "Generated kernel"),
      !sure && L.h("p", { class: "small soft" }, kernels.length > 1 ? "One of these, by the flow of data between library calls." : "By the flow of data between library calls."),
      kernels.map(([[name, kind, calls, source]]) => L.h("details", { open: kernels.length === 1 }, L.h("summary", { class: "mono" }, name, ` (${kind}, ${calls} call${calls === 1 ? "" : "s"})`), source ? L.h("pre", null, source) : L.h("p", { class: "small soft" }, "A library's kernel: no code is generated.")))],
    snapshot.name === "after" && !kernels.length && L.h("p", { class: "small soft" }, "No kernel of its own is known: it looks at memory, is fused into one that cannot be told, or nothing was generated."));
};

L.facts = (facts) => L.h("dl", { class: "facts" }, facts.filter(([, value]) => value && (!Array.isArray(value) || value.length)).map(([name, value]) => [L.h("dt", null, name), L.h("dd", null, value)]));

L.moduleDetails = (panel, group, owner) => {
  const { snapshot, text, report } = panel;
  const places = L.opsIn(group);
  const keys = [...new Set(places.map((at) => text(snapshot.site[at])).filter(Boolean))];
  const sites = keys.map((key) => report.sites.find((site) => site.key === key)).filter(Boolean);
  const made = new Map();
  for (const at of places) { const name = text(snapshot.made[at]); if (name) made.set(name, (made.get(name) || 0) + 1); }
  return L.h("div", null, L.h("h3", null, group.path && !group.path.includes("\u0000") ? group.path : group.name),
    L.facts([["class", L.own(snapshot.classes, group.path)], ["operations", L.count(places.length)], ["writes", L.bytes(places.reduce((sum, at) => sum + snapshot.bytes[at], 0))],
      ["added by", [...made].map(([name, count]) => `${name} ${count}`).join(", ")]]),
    sites.length > 0 && [L.h("h3", null, "GEMMs inside"), L.h("table", { class: "plain" }, sites.slice(0, 40).map((site) => L.h("tr", null,
      L.h("td", null, L.h("button", { type: "button", class: "link mono", onclick: () => L.revealSite(site.key) }, site.key)), L.h("td", null, L.choice(site)), L.h("td", { class: "right" }, L.times(site.speedup)))))]);
};
