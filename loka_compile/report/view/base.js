"use strict";
// The page's names live in L. Text from a model reaches the page as text only: elements are made here, never parsed.
const L = { views: [] };

L.report = JSON.parse(document.getElementById("data").textContent);

// h("div", {class: "x", onclick: f}, "text", child, [children])
L.h = (tag, attributes, ...children) => L.fill(document.createElement(tag), attributes, children);
L.svg = (tag, attributes, ...children) =>
  L.fill(document.createElementNS("http://www.w3.org/2000/svg", tag), attributes, children);

L.fill = (element, attributes, children) => {
  for (const [name, value] of Object.entries(attributes || {})) {
    if (value === null || value === undefined || value === false) continue;
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (name === "style") for (const [key, of] of Object.entries(value)) element.style.setProperty(key, of);
    else element.setAttribute(name, value === true ? "" : value);
  }
  for (const child of children.flat(Infinity)) {
    if (child === null || child === undefined || child === false) continue;
    element.append(child instanceof Node ? child : L.visible(String(child), element.tagName === "PRE"));
  }
  return element;
};

// Two names that differ must look so, and none may turn the text around it: what has no glyph, or reorders others, is
// shown as its code. Code keeps its lines.
L.visible = (text, code) => text
  .replace(/[\u0000-\u0008\u000b-\u001f\u007f-\u009f\u061c\u200b\u200e\u200f\u2028-\u202e\u2060\u2066-\u2069\ufeff]/g, (each) => `⟨${each.charCodeAt(0).toString(16).padStart(4, "0")}⟩`)
  .replace(/\n/g, code ? "\n" : "⏎");

L.show = (element, ...children) => {
  element.replaceChildren();
  return L.fill(element, null, children);
};

// A view: `count` beside its name, `draw` into its section when it is first opened.
L.view = (id, name, there, draw, count) => L.views.push({ id, name, there, draw, count });

L.option = (value, text, selected) => L.h("option", { value, selected }, text);
L.select = (label, options, value, change) => {
  const box = L.h("select", { onchange: () => change(box.value) },
    options.map(([key, text]) => L.option(key, text, key === value)));
  return L.h("label", null, label, box);
};

// Texts of one report by their number; -1 is none.
L.texts = (report) => (place) => (place >= 0 ? report.strings[place] : "");

// What an object was given under a name; not what all objects have, as `constructor`.
L.own = (object, name) => (Object.hasOwn(object, name) ? object[name] : undefined);

L.theme = (name) => {
  document.documentElement.dataset.theme = name;
};
