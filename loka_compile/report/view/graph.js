"use strict";
// Two graphs side by side, before and after or of two reports: what is selected in one is shown in the other.
L.view("graph", "Graph", () => L.report.graphs.length > 0, (root) => L.graphView(root, L.report, L.report), () => L.report.graphs.reduce((sum, graph) => sum + graph.snapshots.at(-1).names.length, 0));

L.openSite = (key) => { L.open("graph"); L.toSite(key); };

L.graphView = (root, report, right) => {
  const owner = { overlay: "recipe", showInputs: false, both: true };
  const aside = L.h("aside", { class: "aside", "aria-live": "polite" }, L.h("p", { class: "soft" }, "Pick a box: a module folds and unfolds, an operation shows its line of code, its kernel, and the pass that made it."));
  const legend = L.h("div", { class: "legend" });
  const place = L.h("div");
  let panels = [];
  const hues = new Map();
  owner.hue = (name) => {
    if (!hues.has(name)) hues.set(name, ["keep", ""].includes(name) ? L.grey : L.colours[[...hues.keys()].filter((each) => !["keep", ""].includes(each)).length % L.colours.length]);
    return hues.get(name);
  };
  owner.legend = (said) => L.show(legend, L.h("span", { class: "soft" }, said), [...hues].map(([name, colour]) => L.h("span", null, L.h("i", { style: { background: colour } }), name || "–")));
  const draw = () => panels.forEach((panel) => panel.draw());
  let shown = 0;
  const show = (at) => {
    shown = at;
    chooser.querySelector("select").value = String(at);
    const graph = report.graphs[Math.min(at, report.graphs.length - 1)];
    const other = right.graphs[Math.min(at, right.graphs.length - 1)];
    const last = graph.snapshots.length - 1;
    const before = Math.max(0, graph.snapshots.findIndex((each) => each.name === "before"));
    panels = [new L.Panel(report, graph, right === report ? before : last, owner), new L.Panel(right, other, other.snapshots.length - 1, owner)];
    L.show(place, L.h("div", { class: `graph ${owner.both ? "" : "single"}` }, owner.both ? panels[0].root : null, panels[1].root, aside));
    draw();
  };
  owner.pick = (panel, unit, into) => {
    const other = panels.find((each) => each !== panel);
    if (typeof unit !== "number" && unit !== panel.tree.root) {
      unit.open = !unit.open;
      const twin = other.byPath.get(unit.path);
      if (twin) twin.open = unit.open;
      panel.mark("selected", [unit]);
      other.mark("selected", []);
      panel.linked.clear();
      other.mark("linked", twin ? [twin] : [], true);
    } else {
      panel.linked.clear();
      other.selected.clear();
      if (typeof unit === "number") L.openTo(panel.tree.own[unit]);
      panel.mark("selected", [unit], into);
      other.mark("linked", typeof unit === "number" ? L.twins(panel, unit, other) : [], true);
    }
    L.show(aside, L.nodeDetails(panel, unit, owner));
  };
  owner.find = (name) => {
    const panel = panels.find((each) => !each.isAfter && each.byName.has(name)) || panels.find((each) => each.byName.has(name));
    if (panel) owner.pick(panel, panel.byName.get(name), true);
  };
  const search = L.h("input", {
    type: "search", placeholder: "Find an operation or a module: Enter ( / )", "aria-label": "Find in the graph",
    onkeydown: (event) => { if (event.key === "Enter") L.show(missed, seek(event.target.value) ? "" : `Nothing here is called ${event.target.value}.`); },
    oninput: () => L.show(missed),
  });
  const missed = L.h("span", { class: "soft small", "aria-live": "polite" });
  let last = -1;
  const seek = (words) => {
    for (const panel of [panels[1], panels[0]]) { // what a pass took away is in the first alone
      const { names } = panel.snapshot;
      const hit = (at) => `${names[at]} ${panel.text(panel.snapshot.target[at])} ${panel.text(panel.snapshot.module[at])}`.toLowerCase().includes(words.toLowerCase());
      for (let step = 1; step <= names.length; step += 1) {
        const at = (last + step) % names.length;
        if (hit(at)) { last = at; owner.pick(panel, at, true); return true; }
      }
      if (!owner.both) break;
    }
    return false;
  };
  L.toSite = (key) => {
    const at = Math.max(0, report.graphs.findIndex((graph) => graph.snapshots.some((each) => each.site.some((site) => L.texts(report)(site) === key))));
    if (report.graphs[at] !== panels[0].graph) show(at);
    for (const panel of panels.toReversed()) {
      const own = panel.snapshot.names.flatMap((_, place) => (panel.text(panel.snapshot.site[place]) === key ? [place] : []));
      // The product itself, which a library's kernel computes, before what is around it.
      const found = own.find((place) => panel.snapshot.kernels[place].some((kernel) => kernel >= 0)) ?? own.find((place) => /mm|gemm/.test(panel.target(place))) ?? own[0];
      if (found !== undefined) { owner.pick(panel, found, true); return; }
    }
  };
  const most = report.graphs.length < right.graphs.length ? right.graphs : report.graphs;
  const chooser = L.select("graph", most.map((graph, at) => [String(at), `${graph.name} (${graph.training ? "training" : "inference"})`]), "0", (value) => show(Number(value)));
  root.append(L.h("div", { class: "toolbar" },
    most.length > 1 && chooser,
    L.select("colour by", L.OVERLAYS, owner.overlay, (value) => { owner.overlay = value; hues.clear(); draw(); }),
    L.h("label", null, L.h("input", { type: "checkbox", onchange: (event) => { owner.showInputs = event.target.checked; draw(); } }), "edges from inputs"),
    L.h("label", null, L.h("input", { type: "checkbox", checked: true, onchange: (event) => { owner.both = event.target.checked; show(shown); } }), right === report ? "before and after" : "A and B"),
    search, missed), legend, place);
  show(0);
};

// The operations of another graph that one is, or was made from, or became: by what the passes did; else by its line.
L.twins = (panel, at, other) => {
  const { snapshot, text } = panel;
  const same = (name) => (other.byName.has(name) ? [other.byName.get(name)] : []);
  let found = [];
  if (panel.report !== other.report) {
    const site = text(snapshot.site[at]);
    const phase = text(snapshot.phase[at]); // forward and backward may each have a node of one name
    const alike = (place) => panel.target(at) === other.target(place) && phase === other.text(other.snapshot.phase[place]);
    found = other.snapshot.names.flatMap((name, place) => (name === snapshot.names[at] && alike(place) ? [place] : []));
    if (!found.length && site) found = other.snapshot.site.flatMap((each, place) => (other.text(each) === site ? [place] : []));
  } else if (panel.isAfter && other.snapshot.name === "before") found = snapshot.origins[at].map(text).flatMap(same);
  else if (other.isAfter) found = other.byOrigin.get(snapshot.names[at]) || [];
  else if (panel.place === other.place) found = [at];
  if (!found.length && text(snapshot.line[at])) {
    const key = (each, place) => `${each.text(each.snapshot.module[place])} ${each.text(each.snapshot.line[place])}`;
    const mine = key(panel, at);
    found = other.snapshot.names.flatMap((_, place) => (key(other, place) === mine ? [place] : [])).slice(0, 12);
  }
  return found.slice(0, 60);
};
