"use strict";
// The passes in the order they ran; one opens to what it did, what it refused, and the graph's code as a diff.
L.view("passes", "Passes", () => L.report.stages.length > 0, (root) => L.passes(root, L.report), () => L.report.stages.filter((stage) => stage.rewrites.length).length);

L.passes = (root, report) => {
  const text = L.texts(report);
  const state = { words: "", idle: false };
  const list = L.h("div", { class: "stages" });
  const names = { dynamo: "on Dynamo's graph, before autograd", inference: "on the inference graph", joint: "on forward and backward together", forward: "on the forward graph", backward: "on the backward graph" };
  const opened = new Set();
  const matches = (stage) => {
    const all = [stage.name, ...stage.rewrites.flat().map(text), ...stage.refusals.flat().map(text)].join(" ").toLowerCase();
    return all.includes(state.words.toLowerCase());
  };
  const elsewhere = (stage) => !stage.rewrites.length && stage.refusals.length > 0 && stage.refusals.every((each) => !text(each[0]) && !text(each[1])); // of the pass as a whole: it serves another device
  const idle = (stage) => elsewhere(stage) || (!stage.rewrites.length && !stage.refusals.length);
  const most = Math.max(1, ...report.stages.map((stage) => stage.added + stage.removed));
  const update = () => {
    const parts = [];
    let lane = "";
    for (const stage of report.stages) {
      const quiet = idle(stage);
      if ((quiet && !state.idle && !stage.diff) || !matches(stage)) continue;
      const own = `${stage.graph} · ${names[stage.kind]}`;
      if (own !== lane) parts.push(L.h("div", { class: "lane" }, own));
      lane = own;
      parts.push(row(stage));
      if (opened.has(stage)) parts.push(L.stageDetails(stage, text));
    }
    L.show(list, parts.length ? parts : L.h("p", { class: "soft" }, "Nothing matches."));
  };
  const what = (stage) => text(stage.what ?? -1);
  const row = (stage) => {
    const share = (count) => `${Math.max(count ? 3 : 0, (110 * count) / most)}px`;
    return L.h("button", {
      type: "button", class: `stage ${stage.rewrites.length ? "did" : "idle"}`, "aria-expanded": String(opened.has(stage)), "data-pass": stage.name,
      onclick: () => { if (opened.has(stage)) opened.delete(stage); else opened.add(stage); update(); },
    }, L.h("span", null, stage.rewrites.length ? "✔" : idle(stage) ? "·" : "✖"), L.h("span", { class: "name" }, stage.name), L.h("span", { class: "small what", title: what(stage) }, what(stage)),
    L.h("span", null, stage.diff && L.svg("svg", { width: 240, height: 14, role: "img", "aria-label": `${stage.removed} lines out, ${stage.added} in` },
      L.svg("rect", { x: 115 - parseFloat(share(stage.removed)), y: 2, width: parseFloat(share(stage.removed)), height: 10, fill: "#d55e00" }), L.svg("rect", { x: 117, y: 2, width: parseFloat(share(stage.added)), height: 10, fill: "#009e73" }))),
    L.h("span", { class: "small" }, [stage.rewrites.length && `${stage.rewrites.length} done`, elsewhere(stage) ? "not for this device" : stage.refusals.length && `${stage.refusals.length} refused`, stage.diff && `−${stage.removed} +${stage.added} lines`].filter(Boolean).join(" · ") || "nothing to do"));
  };
  const still = report.stages.filter((stage) => idle(stage) && !stage.diff).length;
  root.append(L.h("div", { class: "toolbar" },
    L.h("input", { type: "search", placeholder: "Search passes, sites and reasons ( / )", "aria-label": "Search passes", oninput: (event) => { state.words = event.target.value; update(); } }),
    L.h("label", null, L.h("input", { type: "checkbox", onchange: (event) => { state.idle = event.target.checked; update(); } }), `show ${still} that found nothing, or are not for this device`),
    L.h("span", { class: "small soft" }, "Bars: lines of the graph's code taken out (left) and put in (right).")), list);
  update();
};

L.stageDetails = (stage, text) => {
  const grouped = (found, key, item) => {
    const by = new Map();
    for (const each of found) { const name = key(each); if (!by.has(name)) by.set(name, []); by.get(name).push(item(each)); }
    return [...by].map(([name, items]) => L.h("li", null, L.h("strong", null, name), `: ${[...new Set(items)].join(", ")}`));
  };
  return L.h("div", { class: "stage-details" },
    stage.rewrites.length > 0 && [L.h("h3", null, "Done"), L.h("ul", { class: "notes" }, grouped(stage.rewrites, ([, did, kernel]) => text(did) + (text(kernel) ? ` (${text(kernel)})` : ""), ([site]) => text(site)))],
    stage.refusals.length > 0 && [L.h("h3", null, "Refused"), L.h("ul", { class: "notes" }, grouped(stage.refusals, ([, , reason]) => text(reason), ([site, node]) => text(site) || text(node) || "all of the graph"))],
    stage.diff && [L.h("h3", null, "The graph's code"), L.diff(stage.diff)]);
};

L.diff = (diff) => L.h("pre", { class: "diff", tabindex: "0" }, diff.split("\n").map((line) => {
  const kind = /^(---|\+\+\+|@@|…)/.test(line) ? "hunk" : line[0] === "+" ? "plus" : line[0] === "-" ? "minus" : "";
  return L.h("span", { class: kind }, line || " ");
}));
