"use strict";
// A preview: one step, kernel by kernel, all sides to one scale; modelled unless it says measured.
L.view("preview", "Preview", () => L.report.previews.length > 0, (root) => L.report.previews.forEach((preview) => L.preview(root, preview)));

L.KINDS = { product8: ["product, 8 bits", "#009e73"], product16: ["product, 16 or 32 bits", "#0072b2"], quantize: ["quantize", "#e69f00"], other: ["other", "#646b73"] };

L.preview = (root, preview) => {
  const shown = preview.sides.filter((side) => side.kernels.length);
  const total = (side) => side.kernels.reduce((sum, kernel) => sum + L.number(kernel.us), 0);
  const longest = Math.max(1, ...shown.map(total));
  const against = shown.find((side) => side.name === preview.against) || shown[0];
  const where = L.h("div");
  const measured = (side) => side.kernels.every((kernel) => kernel.measured_us !== null) && side.kernels.reduce((sum, kernel) => sum + kernel.measured_us, 0);
  const errors = preview.sides.filter((side) => side.error);
  L.fill(root, null, [L.h("h2", null, `${preview.model} on ${preview.target}: one step, ${preview.training ? "forward and backward" : "inference"}`),
    errors.length ? L.h("ul", { class: "warnings", role: "alert" }, errors.map((side) => L.h("li", null, `✖ ${side.name}: ${side.error}`))) : "",
    preview.capacity && preview.memory > preview.capacity ? L.h("ul", { class: "warnings" }, L.h("li", null, `✖ a step needs at least ${L.bytes(preview.memory)}; ${preview.target} has ${L.bytes(preview.capacity)}`)) : "",
    L.h("p", { class: "small soft" }, L.h("span", { class: "level" }, preview.where ? `measured on ${preview.where}, and modelled` : "modelled"), ` kernels in launch order, to scale; pick one for its operands. ${L.rates(preview.rates)}`),
    L.h("div", { class: "legend" }, Object.values(L.KINDS).map(([name, colour]) => L.h("span", null, L.h("i", { style: { background: colour } }), name)), preview.training && L.h("span", null, "darker line below: backward")),
    L.h("table", { class: "plain" }, L.h("tr", null, ["side", "kernels", "GFLOP", "moved", "time", `x ${against ? against.name : ""}`].map((name, at) => L.h("th", { class: at ? "right" : "" }, name))),
      shown.map((side) => L.h("tr", { class: side.name === "loka" ? "chosen" : "" }, L.h("td", null, side.name), L.h("td", { class: "right" }, side.kernels.length),
        L.h("td", { class: "right" }, L.fixed(side.kernels.reduce((sum, k) => sum + k.flops, 0) / 1e9, 2)), L.h("td", { class: "right" }, L.bytes(side.kernels.reduce((sum, k) => sum + k.bytes, 0))),
        L.h("td", { class: "right" }, L.us(total(side)), measured(side) ? ` (${L.us(measured(side))} measured)` : ""), L.h("td", { class: "right" }, L.times(total(against) / total(side)))))),
    L.h("div", { class: "steps" }, shown.map((side) => L.step(side, longest, total(side), (kernel, at) => L.show(where, L.kernel(side, kernel, at))))), where,
    preview.sides.flatMap((side) => side.notes.map((note) => L.h("p", { class: "small soft" }, `${side.name}: ${note}`))),
    shown.map((side) => L.kernelTable(side))]);
};

// What the modelled times assume.
L.rates = (rates) => {
  const words = { flops: (v) => `${L.percent(v)} of the peak FLOP/s`, bandwidth: (v) => `${L.percent(v)} of the bandwidth`, launch: (v) => `${L.short(v * 1e6)} µs a launch`, graph_launch: (v) => `${L.short(v * 1e6)} µs in a CUDA graph`, origin: (v) => `from ${v}`, target: () => "" };
  return `Modelled with ${Object.entries(rates).map(([name, value]) => (words[name] ? words[name](value) : `${name} ${value}`)).filter(Boolean).join(", ")}`;
};

L.step = (side, longest, total, pick) => {
  const [left, width] = [150, Math.max(560, Math.min(1180, innerWidth - 60))];
  const scale = (width - left - 90) / longest;
  let x = left;
  const names = side.strings;
  const blocks = side.kernels.map((kernel, at) => {
    const wide = Math.max(0.8, L.number(kernel.us) * scale);
    const block = L.svg("g", { class: "kernel", tabindex: "0", role: "button", "aria-label": names[kernel.name], onclick: () => pick(kernel, at), onkeydown: (event) => { if (event.key === "Enter") pick(kernel, at); } },
      L.svg("title", null, `${at}: ${names[kernel.name]} · ${names[kernel.site]} · ${L.us(kernel.us)} · ${names[kernel.bound]}`),
      L.svg("rect", { x, y: 6, width: Math.max(0.6, wide - 0.7), height: 26, fill: L.KINDS[kernel.what][1] }),
      kernel.backward ? L.svg("rect", { x, y: 33, width: wide, height: 3, fill: "currentColor" }) : null,
      kernel.spills ? L.svg("text", { x, y: 4 }, "!") : null);
    x += wide;
    return block;
  });
  return L.svg("svg", { width, height: 42, viewBox: `0 0 ${width} 42`, role: "group", "aria-label": side.name },
    L.svg("text", { x: left - 8, y: 24, "text-anchor": "end" }, side.name), blocks, L.svg("text", { x: x + 6, y: 24 }, L.us(total)));
};

L.kernel = (side, kernel, at) => {
  const names = side.strings;
  return L.h("div", null, L.h("h3", { class: "mono" }, `${at}: ${names[kernel.name]}`), L.facts([["side", side.name], ["operator", names[kernel.op]], ["works for", names[kernel.site]], ["operands", names[kernel.operands]],
    ["time", `${L.us(kernel.us)}, bound by ${names[kernel.bound]}${kernel.measured_us !== null ? `; measured ${L.us(kernel.measured_us)}` : ""}`], ["FLOPs", kernel.flops ? L.short(kernel.flops) : ""], ["bytes", L.bytes(kernel.bytes)], ["spills", kernel.spills ? "yes" : ""]]));
};

L.kernelTable = (side) => {
  const names = side.strings;
  const body = L.h("tbody");
  return L.h("details", { ontoggle: () => {
    if (!body.children.length) L.show(body, side.kernels.map((k, at) => L.h("tr", null, L.h("td", { class: "right" }, at), L.h("td", { class: "mono" }, names[k.name]), L.h("td", null, names[k.site]), L.h("td", { class: "small" }, names[k.operands]), L.h("td", { class: "right" }, L.us(k.us)), L.h("td", null, names[k.bound]))));
  } }, L.h("summary", null, `${side.name}: ${side.kernels.length} kernels`), L.h("table", { class: "plain" }, L.h("thead", null, L.h("tr", null, ["#", "kernel", "works for", "operands", "time", "bound by"].map((name) => L.h("th", null, name)))), body));
};
