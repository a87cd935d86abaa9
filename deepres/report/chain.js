// A network as a chain of blocks: hover lights a block and its wires up, click or Enter opens its details.
"use strict";
(() => {
  const NS = "http://www.w3.org/2000/svg";
  const make = (name, attributes, parent) => {
    const node = document.createElementNS(NS, name);
    for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
    parent.append(node);
    return node;
  };
  // a scale that is readable on white and on near-black, and for the colour-blind (from yellow over green to violet)
  const STOPS = [[253, 231, 37], [94, 201, 98], [33, 145, 140], [59, 82, 139], [110, 40, 140]];
  const colour = (t) => {
    const x = Math.max(0, Math.min(1, t)) * (STOPS.length - 1), i = Math.min(Math.floor(x), STOPS.length - 2);
    return `rgb(${STOPS[i].map((c, k) => Math.round(c + (STOPS[i + 1][k] - c) * (x - i))).join(",")})`;
  };
  const figure = (value) => {
    if (value === null || value === undefined) return "not measured";
    const size = Math.abs(value);
    if (size !== 0 && (size < 0.001 || size >= 1e5)) return value.toExponential(1);
    return size >= 100 ? value.toFixed(0) : size >= 10 ? value.toFixed(1) : value.toFixed(size >= 1 ? 2 : 3);
  };

  function chart(parent, caption, draw) {
    const box = document.createElement("div");
    box.className = "little";
    const text = document.createElement("p");
    text.textContent = caption;
    box.append(text);
    const svg = make("svg", { viewBox: "0 0 260 92", role: "img", "aria-label": caption }, box);
    draw(svg);
    parent.append(box);
  }

  function histogram(parent, counts, edges) {
    const most = Math.max(...counts, 1), width = 260 / counts.length;
    chart(parent, "Examples by |f(x)| / |x|, logarithmic from 0.001 to 100", (svg) => {
      counts.forEach((count, i) => {
        const bar = make("rect", { x: i * width, y: 74 - 70 * count / most, width: width - 1, height: 70 * count / most,
          fill: "var(--accent)" }, svg);
        make("title", {}, bar).textContent = `${figure(edges[i])} to ${figure(edges[i + 1])}: ${count}`;
      });
      [0.001, 0.01, 0.1, 1, 10].forEach((value, i) => {
        make("text", { x: i * 52, y: 88 }, svg).textContent = String(value);
      });
    });
  }

  function ablations(parent, sites, chosen) {
    const cut = sites.filter((site) => site.ablation);
    if (!cut.length) return;
    const top = Math.max(...cut.map((site) => site.ablation.high), 0.5), bottom = Math.min(...cut.map((site) => site.ablation.low), 0);
    const y = (value) => 4 + 80 * (top - value) / (top - bottom), step = 260 / cut.length;
    chart(parent, `Change of error without the branch, points, with 95 % intervals${chosen.ablation ? "; this site is marked" : ""}`,
      (svg) => {
        make("line", { x1: 0, x2: 260, y1: y(0), y2: y(0), stroke: "var(--line)" }, svg);
        cut.forEach((site, i) => {
          const x = (i + 0.5) * step, mine = site === chosen, ink = mine ? "var(--ink)" : "var(--accent)";
          make("line", { x1: x, x2: x, y1: y(site.ablation.low), y2: y(site.ablation.high), stroke: ink, opacity: mine ? 1 : 0.35,
            "stroke-width": mine ? 2.5 : 1 }, svg);
          make("circle", { cx: x, cy: y(site.ablation.change), r: mine ? 4 : Math.min(2, step / 2), fill: ink }, svg);
        });
        make("text", { x: 0, y: 10 }, svg).textContent = `${top >= 0 ? "+" : ""}${figure(top)}`;
      });
  }

  function draw(root) {
    const data = JSON.parse(root.querySelector("script").textContent), sites = data.sites;
    const select = root.querySelector("select"), now = root.querySelector(".now"), detail = root.querySelector(".detail");
    const svg = root.querySelector("svg"), ramp = root.querySelector(".scale i");
    const [least, greatest] = root.querySelectorAll(".scale span");
    ramp.style.background = `linear-gradient(90deg, ${[0, .25, .5, .75, 1].map(colour).join(",")})`;
    let groups = [], chosen = -1;

    const value = (site) => site.values[select.value];
    const description = (site) => `Site ${site.index}, ${site.name}${site.opens ? ", opens a stage" : ""}: ` +
      data.measures.map((m) => `${m.label} ${figure(site.values[m.key])}${m.unit}`).join("; ");

    function paint() {
      const measure = data.measures.find((m) => m.key === select.value);
      const known = sites.map(value).filter((v) => v !== null && v !== undefined);
      const shape = measure.log ? (v) => Math.log10(Math.max(v, 1e-9)) : (v) => v;
      const low = Math.min(...known.map(shape)), high = Math.max(...known.map(shape));
      groups.forEach((group, i) => {
        const v = value(sites[i]), missing = v === null || v === undefined;
        group.querySelector("rect").setAttribute("fill", missing ? "var(--line)" : colour(high > low ? (shape(v) - low) / (high - low) : 0));
      });
      least.textContent = known.length ? figure(Math.min(...known)) + measure.unit : "";
      greatest.textContent = known.length ? figure(Math.max(...known)) + measure.unit : "";
    }

    function open(i) {
      chosen = i;
      groups.forEach((group, k) => {
        group.classList.toggle("chosen", k === i);
        group.setAttribute("aria-pressed", String(k === i));
      });
      const site = sites[i];
      detail.hidden = false;
      detail.replaceChildren();
      const head = document.createElement("h4");
      head.textContent = `Site ${site.index}: ${site.name} (${site.kind}, stage ${site.stage}${site.opens ? ", opens it" : ""})`;
      const list = document.createElement("dl");
      for (const [label, text] of site.details) {
        const dt = document.createElement("dt"), dd = document.createElement("dd");
        dt.textContent = label;
        dd.textContent = text;
        list.append(dt, dd);
      }
      detail.append(head, list);
      if (site.histogram) histogram(detail, site.histogram, data.edges);
      ablations(detail, sites, site);
    }

    function light(i, on) {
      groups[i].classList.toggle("lit", on);
      if (on) now.textContent = description(sites[i]);
    }

    function layOut() {
      svg.replaceChildren();
      groups = [];
      const width = root.clientWidth - 34;
      const cell = sites.length > 150 ? 20 : sites.length > 60 ? 28 : Math.max(34, Math.min(64, width / sites.length));
      const per = Math.max(4, Math.floor(width / cell)), high = 62, size = cell * 0.62;
      const rows = Math.ceil(sites.length / per);
      svg.setAttribute("viewBox", `0 0 ${width} ${rows * high}`);
      svg.setAttribute("height", rows * high);
      let stage = 0;
      sites.forEach((site, i) => {
        const x = (i % per) * cell, y = Math.floor(i / per) * high + 30;
        const group = make("g", { class: `block${site.opens ? " opens" : ""}`, role: "button", tabindex: i === Math.max(chosen, 0) ? 0 : -1,
          "aria-label": description(site), "aria-pressed": String(i === chosen) }, svg);
        const middle = y + size / 2, left = x + (cell - size) / 2;
        make("path", { class: "wire", d: `M${x} ${middle}H${x + cell}` }, group);  // through the branch
        make("path", { class: "wire", d: `M${x} ${middle}C${x + 2} ${y - 16} ${x + cell - 2} ${y - 16} ${x + cell} ${middle}` }, group);
        make("rect", { x: left, y, width: size, height: size, rx: site.opens ? 1 : 5 }, group);
        make("rect", { x, y: y - 14, width: cell, height: size + 16, fill: "transparent", style: "stroke:none" }, group);
        if (site.stage !== stage) {
          stage = site.stage;
          make("text", { x, y: y - 16, class: "stagecaption" }, svg).textContent = `stage ${stage}`;
        }
        group.addEventListener("mouseenter", () => light(i, true));
        group.addEventListener("mouseleave", () => light(i, false));
        group.addEventListener("focus", () => light(i, true));
        group.addEventListener("blur", () => light(i, false));
        group.addEventListener("click", () => { open(i); move(i); });
        groups.push(group);
      });
      if (chosen >= 0) groups[chosen].classList.add("chosen");
      paint();
      return per;
    }

    let per = layOut();
    function move(i) {
      if (i < 0 || i >= groups.length) return;
      groups.forEach((group, k) => group.setAttribute("tabindex", k === i ? 0 : -1));
      groups[i].focus();
    }
    svg.addEventListener("keydown", (event) => {
      const i = groups.indexOf(event.target.closest(".block"));
      if (i < 0) return;
      const to = { ArrowRight: i + 1, ArrowLeft: i - 1, ArrowDown: i + per, ArrowUp: i - per, Home: 0, End: groups.length - 1 }[event.key];
      if (event.key === "Enter" || event.key === " ") open(i);
      else if (to === undefined) return;
      else move(to);
      event.preventDefault();
    });
    select.addEventListener("change", paint);
    let last = root.clientWidth;
    new ResizeObserver(() => {
      if (root.clientWidth !== last) { last = root.clientWidth; per = layOut(); }
    }).observe(root);
  }
  document.querySelectorAll(".chain").forEach(draw);
})();
