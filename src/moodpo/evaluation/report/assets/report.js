// The report's figures, samples and tables, drawn from the JSON in #data.
// Every text of a model or a user reaches the page through textContent, never as markup.
"use strict";
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const SVG = document.getElementById("svg-namespace").namespaceURI;
  const K = data.objectives.length;
  const many = data.series.filter((series) => series.role !== "baseline").length > 1;
  const byId = (id) => document.getElementById(id);
  const state = { prompt: 0, columns: [] }; // columns: what A and B show, {source, weight}

  // ---- elements -------------------------------------------------------------------------------

  const fill = (node, attributes, children) => {
    for (const [name, value] of Object.entries(attributes || {})) {
      if (value === null || value === undefined || value === false) continue;
      if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
      else if (name === "style") Object.assign(node.style, value);
      else node.setAttribute(name, value === true ? "" : value);
    }
    for (const child of children) if (child !== null && child !== undefined) node.append(child);
    return node;
  };
  const html = (tag, attributes, ...children) =>
    fill(document.createElement(tag), attributes, children);
  const svg = (tag, attributes, ...children) =>
    fill(document.createElementNS(SVG, tag), attributes, children);

  // ---- numbers --------------------------------------------------------------------------------

  const minus = (text) => (Number(text) === 0 ? text.replace("-", "") : text.replace("-", "\u2212"));
  const known = (value) => value !== null && value !== undefined;

  /** A number with as many decimals as its neighbors at distance `unit` need. */
  const number = (value, unit) => {
    if (!known(value)) return "\u2013";
    const scale = unit || Math.abs(value) || 1;
    const wanted = 1 - Math.floor(Math.log10(scale));
    const sensible = value ? 3 - Math.floor(Math.log10(Math.abs(value))) : 6; // four digits at most
    const decimals = Math.min(6, Math.max(0, Math.min(wanted, sensible)));
    return minus(value.toFixed(decimals));
  };
  const interval = (mean, low, high) => {
    if (!known(low)) return number(mean);
    const unit = high - low;
    return `${number(mean, unit)} [${number(low, unit)}, ${number(high, unit)}]`;
  };
  const weightText = (weights) =>
    weights.map((w, k) => `${data.objectives[k]} ${w.toFixed(2)}`).join(" \u00b7 ");

  /** About `count` round values inside [low, high]. */
  const ticks = (low, high, count) => {
    const rough = (high - low) / count;
    const power = 10 ** Math.floor(Math.log10(rough));
    const step = [1, 2, 2.5, 5, 10].map((m) => m * power).find((s) => s >= rough * 0.8);
    const found = [];
    for (let i = Math.ceil(low / step - 1e-9); i * step <= high + step * 1e-9; i++) found.push(i * step);
    const decimals = Math.max(0, Math.ceil(-Math.log10(step) - 1e-9) + (step / power === 2.5 ? 1 : 0));
    return found.map((value) => ({ value, text: minus((value || 0).toFixed(decimals)) }));
  };
  const linear = (low, high, from, to) => (value) =>
    from + ((value - low) / (high - low)) * (to - from);

  /** The range of many values, missing ones left out, widened by a share on either side. */
  const extent = (values, margin) => {
    const finite = values.filter(known);
    let low = Math.min(...finite), high = Math.max(...finite);
    if (!finite.length) [low, high] = [0, 1];
    if (low === high) [low, high] = [low - 0.5, high + 0.5];
    return [low - margin * (high - low), high + margin * (high - low)];
  };

  const LETTER = 7.4; // pixels: the mean width of a letter, from a wide font
  const short = (text, length) => (text.length > length ? `${text.slice(0, Math.max(1, length - 1))}\u2026` : text);
  const fitted = (text, width) => short(text, Math.floor(width / LETTER));

  // ---- charts: drawn at the width they have, so that text keeps its size ----------------------

  const chart = (label, draw, ...heading) => {
    const box = html("div", { class: "chart" }, ...heading);
    let width = 0;
    const redraw = () => {
      const now = Math.round(box.clientWidth);
      if (!now || now === width) return;
      width = now;
      const [root, marks, near] = draw(width);
      fill(root, { role: "group", "aria-label": label }, marks.map((one) => one.letter));
      listen(root, marks, near);
      const old = box.querySelector("svg");
      if (old) old.replaceWith(root);
      else box.append(root);
      showChosen();
    };
    new ResizeObserver(redraw).observe(box);
    return box;
  };
  const canvas = (width, height) => svg("svg", { viewBox: `0 0 ${width} ${height}` });

  /**
   * One weight vector of one series at (x, y): focusable, linked to its twins in the other charts.
   * Its letter, drawn above all marks at an offset, says which column of samples shows it.
   */
  const mark = (s, w, [x, y], [dx, dy], ...shapes) => {
    const series = data.series[s];
    const means = data.objectives
      .map((name, k) => `${name} ${interval(series.mean[w][k], series.low[w][k], series.high[w][k])}`)
      .join(", ");
    const letter = svg("text", { class: "letter", x: x + dx, y: y + dy, "data-letter": `${s}-${w}` });
    const node = svg(
      "g",
      {
        class: "mark",
        role: "button",
        tabindex: -1,
        "data-key": `${s}-${w}`,
        "aria-label": `${series.name}. Weights: ${weightText(series.weights[w])}. Mean rewards: ${means}`,
      },
      ...shapes,
    );
    return { s, w, x, y, node, letter };
  };

  /** Pointer, keyboard and focus of one chart; arrow keys move between its marks. */
  const listen = (root, marks, near) => {
    if (!marks.length) return;
    marks[0].node.setAttribute("tabindex", 0);
    const nearest = near || ((x, y) => {
      let best = null, distance = 26;
      for (const one of marks) {
        const away = Math.hypot(one.x - x, one.y - y);
        if (away < distance) [best, distance] = [one, away];
      }
      return best;
    });
    const found = (event) => {
      const box = root.getBoundingClientRect();
      const scale = root.viewBox.baseVal.width / box.width;
      return nearest((event.clientX - box.left) * scale, (event.clientY - box.top) * scale);
    };
    root.addEventListener("pointermove", (event) => {
      const one = found(event);
      if (one) activate(one, event.clientX, event.clientY);
      else deactivate();
    });
    root.addEventListener("pointerleave", deactivate);
    root.addEventListener("click", (event) => {
      const one = found(event);
      if (one) choose(one, event.shiftKey ? 0 : 1);
    });
    marks.forEach((one, index) => {
      one.node.show = () => {
        const box = one.node.getBoundingClientRect();
        activate(one, box.left + box.width / 2, box.top + box.height / 2);
      };
      one.node.addEventListener("focus", one.node.show);
      one.node.addEventListener("blur", deactivate);
      one.node.addEventListener("keydown", (event) => {
        const step = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 }[event.key];
        if (step) {
          const next = marks[(index + step + marks.length) % marks.length].node;
          one.node.setAttribute("tabindex", -1);
          next.setAttribute("tabindex", 0);
          next.focus();
        } else if (event.key === "Enter" || event.key === " ") choose(one, event.shiftKey ? 0 : 1);
        else if (event.key === "Escape") deactivate();
        else return;
        event.preventDefault();
      });
    });
  };

  const twins = (s, w) => document.querySelectorAll(`[data-key="${s}-${w}"]`);

  const activate = (one, x, y) => {
    deactivate();
    document.body.classList.add("focusing");
    for (const node of twins(one.s, one.w)) node.classList.add("on");
    const box = byId("tooltip");
    box.replaceChildren(...tooltip(one.s, one.w));
    box.hidden = false;
    const { width, height } = box.getBoundingClientRect();
    const right = x + 18 + width < innerWidth;
    const left = right ? x + 18 : x - 18 - width;
    box.style.left = `${Math.max(8, Math.min(left, innerWidth - width - 8))}px`;
    box.style.top = `${Math.max(8, Math.min(y - height - 14, innerHeight - height - 8))}px`;
  };
  const deactivate = () => {
    byId("tooltip").hidden = true;
    document.body.classList.remove("focusing");
    for (const node of document.querySelectorAll(".mark.on")) node.classList.remove("on");
  };

  const tooltip = (s, w) => {
    const series = data.series[s];
    const row = (name, k) =>
      html(
        "tr",
        {},
        html("td", {}, name),
        html("td", {}, series.weights[w][k].toFixed(2)),
        html("td", {}, interval(series.mean[w][k], series.low[w][k], series.high[w][k])),
      );
    const heads = ["objective", "weight", "mean reward [95 %]"].map((text) => html("th", {}, text));
    return [
      html("h3", {}, series.name),
      askedBar(series.weights[w]),
      html("table", {}, html("tr", {}, ...heads), ...data.objectives.map(row)),
      sourceOf(s) < 0 ? null : html("p", { class: "note" }, "Click: read it in column B. Shift-click: column A."),
    ].filter(Boolean);
  };
  const askedBar = (weights) =>
    html(
      "div",
      { class: "asked", "aria-hidden": true },
      ...weights.map((w, k) =>
        w > 0 ? html("span", { style: { flex: `${w} 0 0`, background: data.objective_colors[k] } }) : null,
      ),
    );

  // ---- the plane of two objectives ------------------------------------------------------------

  const plane = (first, second, height) => (width) => {
    const tall = Math.round(height(width));
    const root = canvas(width, tall);
    const all = (axis) => data.series.flatMap((series) => [...series.low, ...series.high, ...series.mean].map((row) => row[axis]));
    const [x0, x1] = extent(all(first), 0.05), [y0, y1] = extent(all(second), 0.06);
    const ys = ticks(y0, y1, tall / 75), xs = ticks(x0, x1, width / 110);
    const box = { left: gutter(ys) + 20, right: width - 10, top: 10, bottom: tall - 44 };
    const x = linear(x0, x1, box.left, box.right), y = linear(y0, y1, box.bottom, box.top);
    drawAxes(root, box, x, y, xs, ys);
    root.append(
      svg("text", { class: "title", x: (box.left + box.right) / 2, y: tall - 6, "text-anchor": "middle" },
        fitted(`mean reward: ${data.objectives[first]}`, box.right - box.left)),
      svg("text", { class: "title", x: 0, y: 0, "text-anchor": "middle",
        transform: `translate(12 ${(box.top + box.bottom) / 2}) rotate(-90)` },
        fitted(`mean reward: ${data.objectives[second]}`, box.bottom - box.top)),
    );
    const marks = [];
    const order = data.series.map((_, s) => s).sort((a, b) => rank(a) - rank(b));
    for (const s of order) {
      const series = data.series[s];
      const at = series.mean.map((row) => (known(row[first]) && known(row[second]) ? [x(row[first]), y(row[second])] : null));
      if (series.role !== "baseline") drawRegion(root, box, at, series);
      if (series.role !== "baseline" && K === 2) drawPath(root, at, series);
      at.forEach((point, w) => {
        if (!point) return;
        const color = colorOf(series, w);
        const one = mark(s, w, point, [0, -11], ...bars(series, w, first, second, x, y, color), dot(series, point, color));
        root.append(one.node);
        marks.push(one);
      });
    }
    if (K === 2 && !many) labelCorners(root, box, marks.filter((one) => one.s === 0));
    marks.sort((a, b) => a.s - b.s);
    return [root, marks];
  };
  const rank = (s) => ({ baseline: 0, other: 1, policy: 2 })[data.series[s].role];
  const colorOf = (series, w) => series.color || series.colors[w];

  /** Room for the labels left of an axis. */
  const gutter = (labels) => 14 + LETTER * Math.max(...labels.map(({ text }) => text.length));

  const drawAxes = (root, box, x, y, xs, ys) => {
    for (const { value, text } of xs)
      root.append(
        svg("line", { class: "grid", x1: x(value), x2: x(value), y1: box.top, y2: box.bottom }),
        svg("text", { x: x(value), y: box.bottom + 18, "text-anchor": "middle" }, text),
      );
    for (const { value, text } of ys)
      root.append(
        svg("line", { class: "grid", x1: box.left, x2: box.right, y1: y(value), y2: y(value) }),
        svg("text", { x: box.left - 8, y: y(value) + 4, "text-anchor": "end" }, text),
      );
    root.append(svg("path", { class: "axis", fill: "none", d: `M${box.left} ${box.top}V${box.bottom}H${box.right}` }));
  };

  /** What some point attains: everything left of and below the staircase of the best ones. */
  const drawRegion = (root, box, at, series) => {
    const corners = [];
    for (const point of at.filter(Boolean).sort((a, b) => b[0] - a[0] || a[1] - b[1]))
      if (!corners.length || point[1] < corners[corners.length - 1][1]) corners.push(point);
    if (!corners.length) return;
    const steps = corners.map(([px, py], i) => (i ? `H${px}` : `M${px} ${box.bottom}`) + `V${py}`).join("");
    const color = series.color || "var(--muted)";
    root.append(
      svg("path", { class: "region", fill: color, d: `${steps}H${box.left}V${box.bottom}Z` }),
      svg("path", { class: "edge", stroke: color, d: `${steps}H${box.left}` }),
    );
  };
  const line = (points) => (points.length ? `M${points.map((point) => point.join(" ")).join("L")}` : "");
  const drawPath = (root, at, series) => {
    const order = series.weights.map((_, w) => w).sort((a, b) => series.weights[b][0] - series.weights[a][0]);
    const points = order.map((w) => at[w]).filter(Boolean);
    root.append(svg("path", { class: "path", stroke: series.color || "var(--muted)", d: line(points) }));
  };
  const bars = (series, w, first, second, x, y, color) => {
    const [low, mean, high] = [series.low[w], series.mean[w], series.high[w]];
    const bar = (x1, y1, x2, y2) => svg("line", { class: "bar", stroke: color, x1, y1, x2, y2 });
    return [
      known(low[first]) ? bar(x(low[first]), y(mean[second]), x(high[first]), y(mean[second])) : null,
      known(low[second]) ? bar(x(mean[first]), y(low[second]), x(mean[first]), y(high[second])) : null,
    ];
  };
  /** A disc; hollow for the base model; other policies of an overlay have shapes of their own. */
  const dot = (series, [cx, cy], color, r = 6) => {
    if (series.role === "baseline") return svg("circle", { class: "hollow", cx, cy, r: r * 0.8, stroke: color });
    const place = many ? data.series.indexOf(series) % 3 : 0;
    if (!place) return svg("circle", { class: "dot", cx, cy, r, fill: color });
    const half = r * 0.9;
    const turn = place === 2 ? `rotate(45 ${cx} ${cy})` : null;
    return svg("rect", { class: "dot", x: cx - half, y: cy - half, width: 2 * half, height: 2 * half, fill: color, transform: turn });
  };

  /** Names the points that asked for one objective alone, on the side away from the others. */
  const labelCorners = (root, box, marks) => {
    const cx = marks.reduce((sum, one) => sum + one.x, 0) / marks.length;
    const cy = marks.reduce((sum, one) => sum + one.y, 0) / marks.length;
    for (const k of [0, 1]) {
      const one = marks.find(({ w }) => data.series[0].weights[w][k] > 0.999);
      if (!one) continue;
      const text = fitted(`only ${data.objectives[k]}`, (box.right - box.left) / 2);
      const room = text.length * LETTER + 12;
      const below = k ? one.y >= cy : one.y > cy; // apart even where all points are one
      const outward = one.x > cx ? 1 : -1;
      const inside = outward > 0 ? one.x + room < box.right : one.x - room > box.left;
      const side = inside ? outward : -outward;
      root.append(
        svg("text", { class: "label", x: one.x + side * 10, y: Math.max(box.top + 10, one.y + (below ? 20 : -11)),
          "text-anchor": side > 0 ? "start" : "end" }, text),
      );
    }
  };

  // ---- the triangle of three weights ----------------------------------------------------------

  const triangle = (width, tall) => {
    const side = Math.min(width - 60, (tall - 64) / 0.866);
    const top = [width / 2, 30];
    const corners = [top, [width / 2 - side / 2, 30 + side * 0.866], [width / 2 + side / 2, 30 + side * 0.866]];
    const at = (weights) => [0, 1].map((axis) => corners.reduce((sum, corner, k) => sum + weights[k] * corner[axis], 0));
    const root = canvas(width, tall);
    for (const share of [0.25, 0.5, 0.75])
      for (let k = 0; k < 3; k++) {
        const ends = [1, 2].map((step) => {
          const weights = [0, 0, 0];
          weights[k] = share;
          weights[(k + step) % 3] = 1 - share;
          return at(weights);
        });
        root.append(svg("path", { class: "grid", d: line(ends) }));
      }
    root.append(svg("path", { class: "axis", fill: "none", d: `${line(corners)}Z` }));
    return { root, at, side, corners };
  };
  const nameCorners = (root, corners, gap, width) =>
    corners.forEach(([x, y], k) => {
      const anchor = k === 0 ? "middle" : k === 1 ? "start" : "end";
      const edge = k === 0 ? x : k === 1 ? Math.max(0, x - 36) : Math.min(width, x + 36);
      root.append(svg("text", { class: "label", x: edge, y: k === 0 ? y - gap : y + gap + 9, "text-anchor": anchor },
        fitted(data.objectives[k], k === 0 ? width : width / 2 - 8)));
    });

  /** All requests, each in its color: the key to the pairwise fronts. */
  const weightTriangle = (height) => (width) => {
    const { root, at, corners } = triangle(width, Math.round(height(width)));
    nameCorners(root, corners, 14, width);
    const series = data.series[0];
    const marks = series.weights.map((weights, w) => {
      const point = at(weights);
      return mark(0, w, point, [16, 4], dot(series, point, series.colors[w], 7));
    });
    root.append(...marks.map((one) => one.node));
    return [root, marks];
  };

  /** One objective's mean reward at each request: it should rise toward its own corner. */
  const rewardTriangle = (k) => (width) => {
    const { root, at, side, corners } = triangle(width, Math.round(Math.min(width, 340) * 0.9));
    const series = data.series[0];
    const [low, high] = extent(series.mean.map((row) => row[k]), 0);
    const steps = Math.round(Math.sqrt(2 * series.weights.length));
    const radius = Math.max(4, Math.min(18, (side / steps) * 0.36));
    nameCorners(root, corners, radius + 5, width);
    const marks = series.weights.map((weights, w) => {
      const [cx, cy] = at(weights), value = series.mean[w][k];
      const share = known(value) ? 6 + 64 * ((value - low) / (high - low)) : 0;
      const fillColor = `color-mix(in oklab, ${data.objective_colors[k]} ${share}%, var(--paper))`;
      const label = radius > 14 ? svg("text", { class: "value", x: cx, y: cy + 4 }, number(value, (high - low) / 2)) : null;
      return mark(0, w, [cx, cy], [radius * 0.9 + 4, 4 - radius * 0.75], svg("circle", { class: "dot", cx, cy, r: radius, style: { fill: fillColor } }), label);
    });
    root.append(...marks.map((one) => one.node));
    return [root, marks];
  };

  // ---- parallel coordinates for any other number of objectives --------------------------------

  const parallel = (width) => {
    const narrow = width < 560;
    const tall = narrow ? 380 : 440;
    const root = canvas(width, tall);
    const margin = narrow ? 34 : 64, top = 44, bottom = tall - 30;
    const xs = data.objectives.map((_, k) => (K === 1 ? width / 2 : margin + (k * (width - 2 * margin)) / (K - 1)));
    const scales = data.objectives.map((_, k) => {
      const [low, high] = extent(data.series.flatMap((series) => series.mean.map((row) => row[k])), 0.02);
      return { low, high, y: linear(low, high, bottom, top) };
    });
    const named = { fontWeight: 600, fontSize: narrow ? "11px" : "13px" };
    data.objectives.forEach((name, k) => {
      const shown = short(name, Math.max(3, Math.floor((width / K - 4) / (narrow ? 6.2 : 8))));
      const { low, high } = scales[k];
      root.append(
        svg("line", { class: "axis", x1: xs[k], x2: xs[k], y1: top, y2: bottom }),
        svg("text", { class: "title", x: xs[k], y: 14, "text-anchor": "middle", style: named }, shown, svg("title", {}, name)),
        svg("text", { x: xs[k], y: top - 9, "text-anchor": "middle" }, number(high, (high - low) / 2)),
        svg("text", { x: xs[k], y: bottom + 19, "text-anchor": "middle" }, number(low, (high - low) / 2)),
        svg("path", { fill: "none", stroke: data.objective_colors[k], "stroke-width": 3, d: `M${xs[k] - 14} 22h28` }),
      );
    });
    const marks = [];
    for (const s of data.series.map((_, i) => i).sort((a, b) => rank(a) - rank(b)))
      data.series[s].weights.forEach((weights, w) => {
        const series = data.series[s];
        const at = series.mean[w].map((value, k) => (known(value) ? [xs[k], scales[k].y(value)] : null));
        if (at.some((point) => point === null)) return;
        const base = series.role === "baseline";
        const pure = !base && Math.max(...weights) > 0.999;
        const color = colorOf(series, w);
        const end = at[K - 1];
        const style = `line${pure ? " pure" : ""}${base ? " dashed" : ""}`;
        const path = svg("path", { class: style, stroke: color, d: line(at) });
        const dots = base ? [] : at.map((point) => dot(series, point, color, pure ? 4.5 : 3.2));
        const one = mark(s, w, end, [14, 4], path, ...dots);
        root.append(one.node);
        marks.push({ ...one, at });
      });
    marks.sort((a, b) => a.s - b.s);
    return [root, marks, (x, y) => nearestLine(marks, xs, x, y)];
  };
  const nearestLine = (marks, xs, x, y) => {
    const k = Math.max(0, Math.min(K - 2, xs.findIndex((at) => at > x) - 1));
    let best = null, distance = 14;
    for (const one of marks) {
      const [x0, y0] = one.at[k], [x1, y1] = one.at[Math.min(k + 1, K - 1)];
      const share = x1 > x0 ? Math.max(0, Math.min(1, (x - x0) / (x1 - x0))) : 0;
      const away = Math.abs(y0 + share * (y1 - y0) - y);
      if (away < distance) [best, distance] = [one, away];
    }
    return best;
  };

  // ---- steering curves ------------------------------------------------------------------------

  const curve = (k) => (width) => {
    const tall = Math.round(Math.max(210, Math.min(260, width * 0.72)));
    const root = canvas(width, tall);
    const values = data.series.flatMap(({ curves, mean }) => [
      ...curves[k].low, ...curves[k].high, ...curves[k].mean, ...mean.map((row) => row[k])]);
    const [y0, y1] = extent(values, 0.06);
    const ys = ticks(y0, y1, 4);
    const box = { left: gutter(ys), right: width - 12, top: 12, bottom: tall - 40 };
    const x = linear(0, 1, box.left + 8, box.right - 8), y = linear(y0, y1, box.bottom, box.top);
    const xs = [[0, "0"], [0.25, "\u00bc"], [0.5, "\u00bd"], [0.75, "\u00be"], [1, "1"]].map(([value, text]) => ({ value, text }));
    drawAxes(root, box, x, y, xs, ys);
    root.append(svg("text", { x: (box.left + box.right) / 2, y: tall - 5, "text-anchor": "middle" }, fitted(`requested weight of ${data.objectives[k]}`, box.right - box.left)));
    const marks = [];
    for (const s of data.series.map((_, i) => i).sort((a, b) => rank(a) - rank(b))) {
      const series = data.series[s], steps = series.curves[k];
      const color = series.color || data.objective_colors[k];
      const points = steps.x.map((place, i) => [x(place), known(steps.mean[i]) ? y(steps.mean[i]) : null]).filter((p) => p[1] !== null);
      root.append(svg("path", { class: "path", stroke: color, style: { strokeWidth: series.role === "baseline" ? 1.2 : 2,
        strokeDasharray: series.role === "baseline" ? "4 4" : "none" }, d: line(points) }));
      steps.x.forEach((place, i) => {
        if (known(steps.low[i])) root.append(svg("line", { class: "bar", stroke: color, "stroke-width": 1.6, x1: x(place), x2: x(place), y1: y(steps.low[i]), y2: y(steps.high[i]) }));
      });
      const shared = steps.x.length < series.weights.length; // several requests share a place
      series.weights.forEach((weights, w) => {
        if (!known(series.mean[w][k])) return;
        const at = [x(weights[k]), y(series.mean[w][k])];
        const one = mark(s, w, at, [0, -10], dot(series, at, color, shared ? 3 : 5));
        root.append(one.node);
        marks.push(one);
      });
    }
    marks.sort((a, b) => a.s - b.s);
    return [root, marks];
  };

  // ---- samples side by side -------------------------------------------------------------------

  const samples = data.samples;
  const sourceOf = (s) => (samples ? samples.sources.findIndex((source) => source.series === s) : -1);

  const choose = (one, column) => {
    const source = sourceOf(one.s);
    if (source < 0) return;
    state.columns[column] = { source, weight: one.w };
    showSamples();
  };

  const showSamples = () => {
    byId("prompt-select").value = state.prompt;
    byId("prompt-text").textContent = samples.prompts[state.prompt];
    state.columns.forEach((column, index) => byId(`column-${index}`).update(column));
    showChosen();
  };
  const showChosen = () => {
    for (const letter of document.querySelectorAll(".letter")) fill(letter, { dx: 0 }, []).textContent = "";
    state.columns.forEach(({ source, weight }, index) => {
      const key = `${samples.sources[source].series}-${weight}`;
      for (const letter of document.querySelectorAll(`[data-letter="${key}"]`)) letter.textContent += "AB"[index];
    });
    for (const root of document.querySelectorAll(".chart svg")) {
      const [one, other] = [...root.querySelectorAll(".letter")].filter((letter) => letter.textContent);
      if (!other) continue;
      const [dx, dy] = ["x", "y"].map((axis) => Math.abs(one.getAttribute(axis) - other.getAttribute(axis)));
      if (dx < 12 && dy < 13) other.setAttribute("dx", 12); // side by side rather than on each other
    }
  };

  const promptPicker = () => {
    const count = samples.prompts.length;
    const go = (index) => {
      state.prompt = (index + count) % count;
      showSamples();
    };
    const options = samples.prompts.map((text, i) => html("option", { value: i }, `${samples.numbers[i]}. ${short(text.replace(/\s+/g, " "), 90)}`));
    return html(
      "div",
      { class: "picker" },
      html("label", { for: "prompt-select" }, "Prompt"),
      html("select", { id: "prompt-select", onchange: (event) => go(Number(event.target.value)) }, ...options),
      html("button", { type: "button", "aria-label": "Previous prompt", onclick: () => go(state.prompt - 1) }, "\u2039"),
      html("button", { type: "button", "aria-label": "Next prompt", onclick: () => go(state.prompt + 1) }, "\u203a"),
    );
  };

  const rampImage = `linear-gradient(90deg, ${data.ramp.join(", ")})`;

  /** A slider over the path of two weights; a list where weights have no single order. */
  const weightControl = (index, weights, onpick) => {
    const label = `Weights of column ${"AB"[index]}`;
    const texts = weights.map(weightText);
    if (K > 2) {
      const options = texts.map((text, w) => html("option", { value: w }, text));
      const node = html("select", { "aria-label": label, onchange: () => onpick(Number(node.value)) }, ...options);
      return { node, set: (w) => (node.value = w) };
    }
    const order = weights.map((_, w) => w).sort((a, b) => weights[b][0] - weights[a][0]);
    const node = html("input", { type: "range", min: 0, max: order.length - 1, step: 1, "aria-label": label,
      style: { backgroundImage: rampImage }, oninput: () => onpick(order[Number(node.value)]) });
    return {
      node,
      set: (w) => {
        node.value = order.indexOf(w);
        node.setAttribute("aria-valuetext", texts[w]);
      },
    };
  };

  const column = (index) => {
    const box = html("article", { class: "column", id: `column-${index}`, "aria-label": `Column ${"AB"[index]}` });
    let control = null, shown = -1;
    const pick = (change) => {
      Object.assign(state.columns[index], change);
      showSamples();
    };
    const options = samples.sources.map((source, i) => html("option", { value: i }, source.name));
    const select = html("select", { "aria-label": `Policy of column ${"AB"[index]}`, onchange: () => {
      const source = Number(select.value);
      const last = samples.sources[source].weights.length - 1;
      pick({ source, weight: Math.min(state.columns[index].weight, last) });
    } }, ...options);
    const holder = html("div", {}), asked = html("div", {}), body = html("div", {});
    box.append(html("header", {}, html("span", { class: "badge", "aria-hidden": true }, "AB"[index]), select), holder, asked, body);
    box.update = ({ source, weight }) => {
      const from = samples.sources[source];
      if (shown !== source) {
        control = weightControl(index, from.weights, (w) => pick({ weight: w }));
        holder.replaceChildren(control.node);
        shown = source;
      }
      control.set(weight);
      select.value = source;
      asked.replaceChildren(...(K > 2 ? [askedBar(from.weights[weight])] : []), html("p", { class: "asked-text" }, weightText(from.weights[weight])));
      body.replaceChildren(...sample(from, weight));
    };
    return box;
  };

  const sample = (from, w) => {
    const text = samples.texts[from.texts[w][state.prompt]];
    const rewards = from.rewards[w][state.prompt];
    const rows = data.objectives.flatMap((name, k) => scoreRow(name, k, rewards[k], data.series[from.series].mean[w][k]));
    const extra = (from.extra || []).map(({ name, values }) => `${name} ${number(values[w][state.prompt], values.unit)}`);
    return [
      html("p", { class: text.trim() ? "completion" : "completion empty" }, text.trim() ? text : "(an empty answer)"),
      html("dl", { class: "scores" }, ...rows),
      extra.length ? html("p", { class: "extra" }, extra.join(" \u00b7 ")) : null,
    ].filter(Boolean);
  };
  const scoreRow = (name, k, value, mean) => {
    const [low, high] = samples.ranges[k];
    const place = (v) => `${Math.max(0, Math.min(100, (100 * (v - low)) / (high - low)))}%`;
    const track = html("dd", { "aria-hidden": true }, html("div", { class: "track" },
      known(mean) ? html("b", { style: { left: place(mean) } }) : null,
      known(value) ? html("i", { style: { left: place(value), background: data.objective_colors[k] } }) : null));
    return [html("dt", {}, name), track, html("dd", {}, number(value, (high - low) / 20))];
  };

  // ---- tables and records ---------------------------------------------------------------------

  const table = ({ title, note, columns, rows, swatches }) => {
    const cell = (text, c, r) => {
      const swatch = c === 0 && swatches ? html("span", { class: "swatch", style: { background: swatches[r] } }) : null;
      return html(c === 0 ? "th" : "td", { scope: c === 0 ? "row" : null, class: columns[c].numeric ? null : "text" }, swatch, text);
    };
    const head = columns.map((one) => html("th", { scope: "col", class: one.numeric ? null : "text" }, one.label));
    return html(
      "div",
      { class: "table" },
      html("h3", {}, title),
      html("div", { class: "scroll", tabindex: 0, role: "region", "aria-label": title },
        html("table", {}, html("thead", {}, html("tr", {}, ...head)),
          html("tbody", {}, ...rows.map((row, r) => html("tr", {}, ...row.map((text, c) => cell(text, c, r))))))),
      note ? html("p", { class: "note" }, note) : null,
    );
  };
  const record = ({ title, rows }) =>
    html("div", {}, html("h3", {}, title),
      html("dl", {}, ...rows.flatMap(([key, value]) => [html("dt", {}, key), html("dd", {}, value)])));

  // ---- the page -------------------------------------------------------------------------------

  const section = (id, title, ...children) => {
    const node = byId(id);
    node.hidden = false;
    fill(node, {}, [html("h2", { id: `${id}-title` }, title), ...children]);
  };
  const note = (text, kind = "note") => (text ? html("p", { class: kind }, text) : null);

  const legend = (row) => {
    const item = (series) => {
      const mixed = `linear-gradient(90deg, ${(K === 2 ? data.ramp : data.objective_colors).join(", ")})`;
      const style = series.role === "baseline"
        ? { border: `2px solid ${series.color}` }
        : { background: series.color || mixed };
      const shape = many ? ["", "square", "diamond"][data.series.indexOf(series) % 3] : series.color ? "" : "wide";
      return html("li", {}, html("span", { class: `swatch ${shape}`, style }), series.name);
    };
    return html("ul", { class: row ? "legend row" : "legend" }, ...data.series.map(item));
  };
  const ramp = () => {
    const strip = html("div", { class: "strip", "aria-hidden": true, style: { backgroundImage: rampImage } });
    return html("div", { class: "ramp" }, "color: requested weights", strip,
      html("div", { class: "ends" }, html("span", {}, `only ${data.objectives[0]}`), html("span", {}, `only ${data.objectives[1]}`)));
  };

  const frontFigure = () => {
    if (K === 2) {
      const aside = html("div", { class: "aside" }, many ? null : ramp(), legend(false));
      return html("div", { class: "figure plane" },
        chart("Front: mean rewards of both objectives, one point per weight vector", plane(0, 1, (w) => Math.min(520, Math.max(300, w * 0.68)))), aside);
    }
    if (K === 3) {
      const tall = (w) => Math.min(400, Math.max(280, w * 0.8));
      const pairs = [[0, 1], [0, 2], [1, 2]].map(([a, b]) =>
        chart(`Front: ${data.objectives[a]} and ${data.objectives[b]}`, plane(a, b, tall)));
      const key = many ? null : chart("The triangle of requested weights", weightTriangle(tall), note("Requested weights"));
      return html("div", {}, legend(true), html("div", { class: many ? "figure pairs three" : "figure pairs" }, key, ...pairs));
    }
    return html("div", { class: "figure parallel" }, legend(true), chart("Mean rewards: one line per weight vector, one scale per objective", parallel));
  };

  const steeringFigure = () => {
    const heading = (name, k) => [html("h3", {}, name), note(data.steering_notes[k])];
    const curves = data.objectives.map((name, k) => chart(`Mean ${name} against its requested weight`, curve(k), ...heading(name, k)));
    const parts = [html("div", { class: "figure curves" }, ...curves)];
    if (K === 3 && !many)
      parts.push(
        html("h3", { class: "subhead" }, "Mean reward over the triangle of weights"),
        html("div", { class: "figure triangles" }, ...data.objectives.map((name, k) =>
          chart(`Mean ${name} over the triangle of weights`, rewardTriangle(k), html("h3", {}, name)))),
      );
    return html("div", {}, ...parts);
  };

  const header = () => {
    const fact = ({ label, value, detail }) =>
      html("div", {}, html("dt", {}, label), html("dd", { class: "value" }, value), html("dd", { class: "detail" }, detail));
    byId("top").append(html("p", { class: "kicker" }, data.kicker), html("h1", {}, data.title), html("p", { class: "lead" }, data.lead));
    if (data.facts.length) byId("top").append(html("dl", { class: "facts" }, ...data.facts.map(fact)));
    if (data.warnings.length)
      byId("top").append(html("aside", { class: "warnings", "aria-label": "Warnings" }, html("h2", {}, "Read with care"),
        html("ul", {}, ...data.warnings.map((text) => html("li", {}, text)))));
  };

  header();
  section("front", "The front", note(data.notes.front), frontFigure(), note(data.notes.intervals));
  if (data.comparison) section("comparison", "The comparison", note(data.comparison.note), ...data.comparison.tables.map(table));
  section("steering", "Steering", note(data.notes.steering), steeringFigure());
  if (samples) {
    section("samples", "Samples", note(data.notes.samples), promptPicker(), html("p", { class: "prompt", id: "prompt-text" }),
      html("div", { class: "columns" }, column(0), column(1)));
    state.columns = samples.start.map(([source, weight]) => ({ source, weight }));
    showSamples();
  }
  section("numbers", "Numbers", ...data.tables.map(table));
  section("provenance", "The run", html("div", { class: "records" }, ...data.provenance.map(record)));
  // Focusing a mark may scroll to it: its tooltip follows; any other tooltip has lost its place.
  addEventListener("scroll", () => (document.activeElement.show || deactivate)(), { passive: true });
})();
