"use strict";
// What colours the boxes. Each gives a text beside the colour, so that nothing is told by colour alone.
L.OVERLAYS = [["recipe", "recipe"], ["error", "error (MERE)"], ["time", "share of GEMM time"], ["bytes", "bytes written"], ["pass", "pass that made it"], ["none", "none"]];

L.overlay = (kind, snapshot, report, isAfter, hue) => {
  const text = L.texts(report);
  const siteOf = new Map(report.sites.map((site) => [site.key, site]));
  const lowered = (site) => ["lowered", "planned"].includes(site.outcome);
  const time = (site) => (isAfter && lowered(site) && L.finite(site.time_after_us)) || L.finite(site.time_before_us) || 0;
  const total = report.sites.reduce((sum, site) => sum + (site.outcome === "absent" ? 0 : time(site)), 0);
  const sitesIn = (places) => [...new Set(places.map((at) => text(snapshot.site[at])).filter(Boolean))].map((key) => siteOf.get(key)).filter(Boolean);
  const most = (names) => {
    const counts = new Map();
    for (const name of names) counts.set(name, (counts.get(name) || 0) + 1);
    return [...counts].sort((a, b) => (a[0] === "keep") - (b[0] === "keep") || b[1] - a[1]);
  };
  const ramp = (share) => ({ colour: `hsl(205 85% ${Math.round(90 - 62 * Math.min(1, share))}%)` });
  const bytes = snapshot.bytes.reduce((sum, each) => sum + each, 0) || 1;
  const makers = {
    recipe: (places) => {
      const found = most(sitesIn(places).map((site) => (lowered(site) ? site.recipe : "keep")));
      return found.length ? { colour: hue(found[0][0]), text: found.map(([name, count]) => (places.length > 1 ? `${count} ${name}` : name)).join(", ") } : null;
    },
    error: (places) => {
      const known = sitesIn(places).filter((site) => lowered(site) && site.mere !== null).map((site) => L.number(site.mere));
      if (!known.length) return null;
      const worst = known.some(Number.isNaN) ? NaN : Math.max(...known);
      return { ...ramp(Number.isFinite(worst) ? worst / 0.2 : 1), text: `MERE ${L.fixed(worst, 4)}` };
    },
    time: (places) => {
      const own = sitesIn(places).reduce((sum, site) => sum + time(site), 0);
      return own && total ? { ...ramp(own / total), text: `${L.percent(own / total)}, ${L.us(own)}` } : null;
    },
    bytes: (places) => {
      const own = places.reduce((sum, at) => sum + snapshot.bytes[at], 0);
      return own ? { ...ramp((4 * own) / bytes), text: L.bytes(own) } : null;
    },
    pass: (places) => {
      const found = most(places.map((at) => text(snapshot.made[at])).filter(Boolean));
      return found.length ? { colour: hue(found[0][0]), text: found.map(([name, count]) => (places.length > 1 ? `${count} by ${name}` : name)).join(", ") } : null;
    },
    none: () => null,
  };
  const legends = {
    recipe: "GEMMs by the recipe they run in (grey: kept)", error: "from pale to dark: MERE 0 to 0.2 and more; the worst GEMM inside",
    time: "from pale to dark: none to all of the GEMMs' time", bytes: "from pale to dark: up to a quarter of all bytes written by operations", pass: "what a pass added to the graph", none: "",
  };
  return { of: makers[kind], legend: legends[kind] };
};
