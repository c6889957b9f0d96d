"use strict";
// An online session: what it says of itself.
L.view("online", "Online", () => L.report.online.length > 0, (root) => L.online(root, L.report));

L.online = (root, report) => root.append(...report.online.map((each) => L.h("p", null, `${each.graph}: ${each.status}`)));
