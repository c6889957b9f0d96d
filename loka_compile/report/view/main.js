"use strict";
// The header, the tabs and the keys. A view is drawn when it is first opened.
L.start = () => {
  const report = L.report;
  L.theme(matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light");
  const kinds = { compilation: "what was compiled", plan: "a plan; nothing was compiled", profile: "a profile; nothing was decided", preview: "a preview: modelled, not measured", comparison: "two reports compared" };
  L.show(document.getElementById("title"), report.title);
  L.show(document.getElementById("subtitle"), `loka report · ${kinds[report.kind]} · ${report.made.when} · loka ${report.made.loka || "–"}, torch ${report.made.torch || "–"}`);
  const there = L.views.filter((view) => view.there());
  const tabs = document.getElementById("tabs");
  const main = document.getElementById("main");
  for (const view of there) {
    const count = view.count && view.count();
    view.tab = L.h("button", { type: "button", role: "tab", id: `tab-${view.id}`, "aria-controls": `view-${view.id}`, onclick: () => L.open(view.id) }, view.name, count ? L.h("span", { class: "count" }, L.count(count)) : null);
    view.section = L.h("section", { id: `view-${view.id}`, role: "tabpanel", "data-name": view.name, "aria-labelledby": view.tab.id, hidden: true });
    tabs.append(view.tab);
    main.append(view.section);
  }
  const draw = (view) => { if (!view.drawn) { view.drawn = true; view.draw(view.section); } };
  L.open = (id) => {
    for (const view of there) {
      const now = view.id === id;
      view.section.hidden = !now;
      view.tab.setAttribute("aria-selected", String(now));
      view.tab.tabIndex = now ? 0 : -1;
      if (now) draw(view);
    }
    history.replaceState(null, "", `#${id}`);
  };
  // Paper has no tabs: all views are printed, one below the other. Tables put all of their rows there when they are told.
  let open = null;
  const all = () => {
    open ??= there.map((view) => !view.section.hidden);
    for (const view of there) { view.section.hidden = false; draw(view); }
    dispatchEvent(new Event("printing"));
  };
  addEventListener("beforeprint", all);
  addEventListener("afterprint", () => {
    there.forEach((view, at) => { view.section.hidden = open !== null && !open[at]; });
    open = null;
    dispatchEvent(new Event("printed"));
  });
  const step = (by) => {
    const at = there.findIndex((view) => !view.section.hidden);
    const next = there[(at + by + there.length) % there.length];
    L.open(next.id);
    next.tab.focus();
  };
  tabs.addEventListener("keydown", (event) => {
    if (event.key === "ArrowRight" || event.key === "ArrowLeft") step(event.key === "ArrowRight" ? 1 : -1);
  });
  const theme = () => L.theme(document.documentElement.dataset.theme === "dark" ? "light" : "dark");
  document.getElementById("theme").addEventListener("click", theme);
  const help = L.help();
  document.body.append(help);
  document.getElementById("about").addEventListener("click", () => help.showModal());
  addEventListener("keydown", (event) => {
    const writing = /^(INPUT|SELECT|TEXTAREA)$/.test(event.target.tagName);
    if (event.key === "Escape" && writing) event.target.blur();
    if (writing || event.ctrlKey || event.metaKey || event.altKey) return;
    const at = Number(event.key) - 1;
    if (there[at]) L.open(there[at].id);
    else if (event.key === "t") theme();
    else if (event.key === "?" && !help.open) help.showModal();
    else if (event.key === "/") {
      const search = document.querySelector("section:not([hidden]) input[type=search]");
      if (search) { search.focus(); event.preventDefault(); }
    }
  });
  const asked = location.hash.slice(1);
  L.open(there.some((view) => view.id === asked) ? asked : there[0].id);
};
L.start();
