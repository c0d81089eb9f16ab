"use strict";
// Draws the report from the JSON in #content. Text from runs goes in as text nodes only.
(() => {
  const content = JSON.parse(document.getElementById("content").textContent);
  const main = document.getElementById("report");
  const tip = document.getElementById("tip");
  const dark = matchMedia("(prefers-color-scheme: dark)");
  main.replaceChildren();

  // --- small helpers ---
  function make(name, attributes = {}, ...children) {
    const element = document.createElement(name);
    for (const [key, value] of Object.entries(attributes)) {
      if (key === "class") element.className = value;
      else if (key === "style") element.style.cssText = value; // the page's policy refuses the attribute
      else if (key.startsWith("on")) element.addEventListener(key.slice(2), value);
      else element.setAttribute(key, value);
    }
    element.append(...children.filter((child) => child !== null && child !== undefined));
    return element;
  }
  const style = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
  const colour = (group) => style(`--s${group % 6}`);
  function show(value, digits = 3) {
    if (value === null || value === undefined) return "–";
    if (value === 0) return "0";
    const size = Math.abs(value);
    const exponential = () => value.toExponential(digits - 1).replace(/\.?0+e/, "e");
    return size >= 1e5 || size < 1e-3 ? exponential() : String(Number(value.toPrecision(digits)));
  }
  function section(title, ...notes) {
    const part = make("section", {}, make("h2", {}, title), ...notes.map((note) => make("p", { class: "soft" }, note)));
    main.append(part);
    return part;
  }
  function showTip(event, text) {
    tip.textContent = text;
    tip.hidden = false;
    const box = tip.getBoundingClientRect();
    const at = event.target.getBoundingClientRect();
    const x = event.clientX === undefined || event.type === "focus" ? at.left : event.clientX;
    tip.style.left = `${Math.max(4, Math.min(x + 12, innerWidth - box.width - 4))}px`;
    tip.style.top = `${at.top > box.height + 12 ? at.top - box.height - 6 : at.bottom + 6}px`;
  }
  function hideTip() { tip.hidden = true; }

  // --- charts (uPlot); all are drawn again when the width or the colour scheme changes ---
  const charts = [];
  function chart(holder, build) {
    const entry = { holder, build, plot: null };
    charts.push(entry);
    return entry;
  }
  function drawChart(entry) {
    entry.plot?.destroy();
    const width = Math.max(240, Math.floor(entry.holder.clientWidth));
    const { options, data } = entry.build();
    entry.plot = new uPlot({ width, height: 220, ...options }, data, entry.holder);
  }
  function drawAll() {
    charts.forEach(drawChart);
    for (const hint of document.querySelectorAll(".hint")) hint.hidden = !sticksOut(hint.nextElementSibling);
  }
  const sticksOut = (holder) => holder.scrollWidth > holder.clientWidth;
  function sideways(...children) {
    // A table that may be wider than the screen: where it is, a line says so.
    const holder = make("div", { class: "wide", tabindex: "0" }, ...children);
    return [make("p", { class: "hint soft", hidden: "" }, "Wider than the screen: move it sideways for the other columns →"), holder];
  }
  function axis(label) {
    return {
      label, labelSize: 20, labelFont: "12px system-ui", font: "12px system-ui", stroke: style("--soft"),
      grid: { stroke: style("--line"), width: 1 }, ticks: { stroke: style("--line"), width: 1 },
      values: (plot, splits) => splits.map((value) => (value === null ? "" : show(value))),
    };
  }
  function logAxis(label) {
    // Lines and labels at powers of ten only.
    const tens = (plot, splits) => splits.map((value) => (Number.isInteger(Number(Math.log10(value).toFixed(9))) ? value : null));
    const made = axis(label);
    return { ...made, size: 64, filter: tens, grid: { ...made.grid, filter: tens }, ticks: { ...made.ticks, filter: tens } };
  }
  function cursorTip(lines) {
    return [
      (plot) => {
        const { idx, left, top } = plot.cursor;
        if (idx === null || idx === undefined || left < 0) return hideTip();
        const box = plot.over.getBoundingClientRect();
        tip.textContent = lines(idx);
        tip.hidden = false;
        const size = tip.getBoundingClientRect();
        tip.style.left = `${Math.max(4, Math.min(box.left + left + 14, innerWidth - size.width - 4))}px`;
        tip.style.top = `${Math.max(4, box.top + top - size.height - 8)}px`;
      },
    ];
  }

  function curveChart(holder, entry) {
    // One x for all groups; a group's mean with its extremes as a band.
    const x = [...new Set(entry.groups.flatMap((group) => (group ? group.steps : [])))].sort((a, b) => a - b);
    const columns = [];
    for (const group of entry.groups) {
      const at = new Map((group ? group.steps : []).map((step, i) => [step, i]));
      for (const name of ["low", "high", "y"]) {
        columns.push(x.map((step) => (at.has(step) ? group[name][at.get(step)] : undefined)));
      }
    }
    return chart(holder, () => {
      const series = [{}];
      const bands = [];
      entry.groups.forEach((group, i) => {
        const ink = colour(i);
        const edge = { stroke: "transparent", points: { show: false }, spanGaps: false };
        series.push({ ...edge }, { ...edge }, { stroke: ink, width: 2, points: { show: x.length < 3 } });
        bands.push({ series: [3 * i + 2, 3 * i + 1], fill: `${ink}33` });
      });
      return {
        options: {
          scales: { x: { time: false, range: ranges.steps }, y: { range: ranges.any } },
          axes: [{ ...axis("step"), incrs: ranges.stepTicks }, axis(entry.unit)],
          series, bands,
          cursor: { y: false },
          hooks: {
            setCursor: cursorTip((idx) => {
              const lines = [`step ${x[idx]}`];
              entry.groups.forEach((group, i) => {
                const [low, high, y] = [0, 1, 2].map((k) => columns[3 * i + k][idx]);
                if (y === undefined || y === null) return;
                const spread = low < high ? `   ${show(low)} to ${show(high)}` : "";
                lines.push(`${content.groups[i].label}: ${show(y)}${spread}`);
              });
              return lines.join("\n");
            }),
          },
        },
        data: [x, ...columns],
      };
    });
  }

  function barChart(holder, state, key, label) {
    // Bins are drawn evenly spaced: their edges are those of a 1-2-5 series.
    return chart(holder, () => {
      const { edges, counts, ink } = state();
      const x = counts.map((_, i) => i);
      const total = counts.reduce((a, b) => a + b, 0);
      const name = (i) => {
        if (i === 0) return `below ${show(edges[0])}`;
        return i === edges.length ? `${show(edges[i - 1])} and above` : `${show(edges[i - 1])} to ${show(edges[i])}`;
      };
      const share = counts.map((count) => (total && count ? count / total : null));
      return {
        options: {
          scales: { x: { time: false, range: [-0.6, counts.length - 0.4] }, y: { distr: 3, range: [1e-6, 1] } },
          axes: [
            {
              ...axis(label),
              splits: () => edges.map((_, i) => i + 0.5).filter((_, i) => edges[i] === 0 || i % 4 === edges.indexOf(0) % 4),
              values: (plot, splits) => splits.map((at) => show(edges[at - 0.5])),
            },
            logAxis("share of the tokens"),
          ],
          series: [{}, { fill: `${ink}cc`, stroke: ink, width: 1, fillTo: 1e-6, paths: uPlot.paths.bars({ size: [0.9] }), points: { show: false } }],
          cursor: { y: false, points: { show: false } },
          hooks: { setCursor: cursorTip((idx) => `${key} ${name(idx)}\n${counts[idx]} of ${total} tokens (${show(counts[idx] / (total || 1))})`) },
        },
        data: [x, share],
      };
    });
  }

  function scatterChart(holder, found, group, of) {
    const points = found.points.filter((point) => point[of] !== null).sort((a, b) => a[of] - b[of]);
    return chart(holder, () => ({
      options: {
        scales: { x: { time: false, range: ranges.any }, y: { range: ranges.any } },
        axes: [{ space: 90, ...axis(of === "predicted" ? "predicted, -lr Cov(log p, w A), nats" : "predicted with the step's effective rate, nats") }, axis("measured change, nats")],
        series: [{}, { stroke: colour(group), paths: () => null, points: { show: true, size: 6, fill: `${colour(group)}88` } }],
        cursor: { y: false },
        hooks: { setCursor: cursorTip((i) => `${points[i].run}, step ${points[i].step}\npredicted ${show(points[i][of])}\nmeasured ${show(points[i].change)}`) },
      },
      data: [points.map((point) => point[of]), points.map((point) => point.change)],
    }));
  }

  // --- sections ---
  function legend() {
    return make("div", { class: "legend" }, ...content.groups.map((group, i) => {
      const runs = group.runs.length > 1 ? ` (${group.runs.length} runs: mean, band from lowest to highest)` : "";
      return make("span", {}, make("i", { style: `background: var(--s${i % 6})` }), group.label + runs);
    }));
  }

  function conclusions() {
    if (!content.conclusions.length) return;
    main.append(make("ul", { class: "conclusions" }, ...content.conclusions.map((text) => make("li", {}, text))));
  }

  function overview() {
    const cards = make("div", { class: "cards" });
    for (const run of content.runs) {
      const rows = make("dl");
      const add = (name, value) => rows.append(make("dt", {}, name), make("dd", {}, value));
      for (const [name, value] of Object.entries(run.facts)) add(name.replace("_", " "), String(value));
      if (run.seed !== null) add("seed", String(run.seed));
      add("steps", run.planned && run.steps < run.planned ? `${run.steps} of ${run.planned}` : String(run.steps));
      for (const name of ["greedy", "sampled"]) {
        const found = run.evaluation[name];
        if (!found) continue;
        const one = (value) => (value ? show(value.accuracy) : "–");
        add(`accuracy, ${name}`, `${one(found.before)} → ${one(found.after)}`);
      }
      add("reward, last 10", show(run.reward));
      add("entropy, last 10", `${show(run.entropy)} nats`);
      cards.append(make("div", { class: "card", style: `border-color: var(--s${run.group % 6})` }, make("b", {}, run.label), rows));
    }
    main.append(cards);
  }

  function curves() {
    const part = section("Training");
    part.append(legend());
    const grid = make("div", { class: "charts" });
    part.append(grid);
    for (const entry of content.curves) {
      const holder = make("div");
      grid.append(make("figure", { "data-curve": entry.key }, make("figcaption", {}, make("b", {}, entry.title), entry.unit ? `, ${entry.unit}` : ""), holder));
      curveChart(holder, entry);
    }
  }

  function quantiles() {
    const part = section(
      "The covariance tail",
      "The covariance c that a fraction of the tokens of its side (c > 0, c < 0) reaches; mean over the steps. Beside it the table of arXiv 2605.11538, which trained a 1.5B model on mathematics.",
    );
    // Keys that look like whole numbers come first in an object, whatever their place.
    const names = Object.keys(content.paper.pos).sort((a, b) => Number(a) - Number(b));
    const row = (label, side, table) => make("tr", {}, make("td", {}, label), ...names.map((name) => make("td", {}, show(table[side][name]))));
    const body = make("tbody");
    for (const [side, sign] of [["pos", "c > 0"], ["neg", "c < 0"]]) {
      content.groups.forEach((group, i) => body.append(row(`${sign}, ${group.label}`, side, content.tables[i])));
      body.append(row(`${sign}, paper`, side, content.paper));
    }
    part.append(...sideways(make("table", { id: "quantiles" },
      make("thead", {}, make("tr", {}, make("th", {}, "fraction of the side"), ...names.map((name) => make("th", {}, name)))), body)));
  }

  function runChooser(runs, change) {
    const select = make("select", { "aria-label": "run", onchange: () => change(Number(select.value)) },
      ...runs.map((i) => make("option", { value: String(i) }, content.runs[i].label)));
    return runs.length > 1 ? select : null;
  }

  function histograms() {
    const having = content.runs.map((run, i) => i).filter((i) => content.runs[i].histograms);
    if (!having.length) return;
    const part = section("Covariances and weights through training", "Shares on a logarithmic axis; tokens of groups without advantage are left out.");
    let run = having[0];
    let frame = 0;
    const frames = () => content.runs[run].histograms.frames;
    const slider = make("input", { type: "range", min: "0", "aria-label": "step", id: "histogram-step", oninput: () => { frame = Number(slider.value); update(); } });
    const label = make("output", { id: "histogram-label" });
    const state = (key) => () => ({
      edges: content.runs[run].histograms[`${key}_edges`], counts: frames()[frame][key], ink: colour(content.runs[run].group),
    });
    const grid = make("div", { class: "charts" });
    const holders = [["c", "covariance c"], ["weight", "weight w"]].map(([key, title]) => {
      const holder = make("div");
      grid.append(make("figure", { "data-histogram": key }, make("figcaption", {}, make("b", {}, title)), holder));
      return barChart(holder, state(key), key === "c" ? "c" : "w", title);
    });
    function update() {
      const { first, last, idle } = frames()[frame];
      label.textContent = `${first === last ? `step ${first}` : `steps ${first} to ${last}`}, ${idle} tokens without advantage`;
      holders.filter((entry) => entry.plot).forEach(drawChart);
    }
    function choose(index) {
      run = index;
      slider.max = String(frames().length - 1);
      // The last that has anything to show: late in training all groups may be without advantage.
      frame = Math.max(0, frames().findLastIndex((entry) => entry.c.some(Boolean)));
      slider.value = String(frame);
      update();
    }
    part.append(make("div", { class: "controls" }, runChooser(having, choose), slider, label), grid);
    choose(run);
  }

  function entropyChanges() {
    if (!content.entropy_changes.some(Boolean)) return;
    const part = section(
      "Predicted and measured change of the entropy",
      "To first order an update changes the entropy by -eta Cov(log p, w A) (arXiv 2505.22617). The rate eta is the learning rate, or, where the run measured it, the part of the optimizer's step along the gradient: Adam's step is neither, so the correlation counts, not the scale.",
    );
    const grid = make("div", { class: "charts" });
    part.append(grid);
    content.entropy_changes.forEach((found, group) => {
      if (!found) return;
      for (const [of, correlation] of [["predicted", found.correlation], ["predicted_step", found.correlation_step]]) {
        if (!found.points.some((point) => point[of] !== null)) continue;
        const holder = make("div");
        const how = found.same_tokens ? "measured on the step's own tokens" : "from one step's tokens to the next one's, which are others";
        const text = correlation
          ? `Pearson ${show(correlation.pearson, 2)}, Spearman ${show(correlation.spearman, 2)}, n = ${correlation.n}; ${how}`
          : `too few points for a correlation; ${how}`;
        grid.append(make("figure", { "data-entropy": of }, make("figcaption", {}, make("b", {}, content.groups[group].label), ` — ${text}`), holder));
        scatterChart(holder, found, group, of);
      }
    });
  }

  function tokens() {
    const having = content.runs.map((run, i) => i).filter((i) => content.runs[i].damped.length);
    if (!having.length) return;
    const part = section("Most damped tokens", "Of each step the tokens with the smallest weight (below 0 the push is reversed; the largest |c| where nothing is weighted), counted by text; means, and the most extreme one in its place.");
    const [hint, holder] = sideways();
    const columns = [["count", "count"], ["steps", "steps"], ["logp", "log p"], ["advantage", "A"], ["c", "c"], ["weight", "w"]];
    function choose(index) {
      const body = make("tbody", {}, ...content.runs[index].damped.map((token) => make("tr", {},
        make("td", {}, make("code", {}, JSON.stringify(token.text).slice(1, -1))),
        ...columns.map(([name]) => make("td", {}, show(token[name]))),
        make("td", { style: "text-align: left" }, make("code", { class: "before" }, JSON.stringify(token.example.before).slice(1, -1)), make("code", {}, JSON.stringify(token.text).slice(1, -1))),
        ...["step", "logp", "advantage", "c", "weight"].map((name) => make("td", {}, show(token.example[name]))),
      )));
      const names = ["token", ...columns.map(([, name]) => name), "most extreme", "step", "log p", "A", "c", "w"];
      holder.replaceChildren(make("table", { id: "damped" }, make("thead", {}, make("tr", {}, ...names.map((name) => make("th", {}, name)))), body));
    }
    part.append(make("div", { class: "controls" }, runChooser(having, choose)), hint, holder);
    choose(having[0]);
  }

  function shade(weight) {
    // Below 1 damped, above 1 raised; twice the mean and more is the full colour. Below 0 the push is reversed.
    if (weight < 0) return `rgba(var(--reversed), ${(0.4 + 0.5 * Math.min(1, -weight)).toFixed(3)})`;
    const strength = Math.min(1, Math.abs(weight - 1));
    return `rgba(var(${weight < 1 ? "--damped" : "--raised"}), ${(0.75 * strength).toFixed(3)})`;
  }
  function heatMap(entry) {
    if (!entry.tokens) return make("div", { class: "tokens" }, entry.completion);
    const { text, logp, c, weight, entropy } = entry.tokens;
    return make("div", { class: "tokens" }, ...text.map((token, i) => {
      const lines = `${JSON.stringify(token)}\nweight ${show(weight[i])}\nlog p ${show(logp[i])}\nc ${show(c[i])}\nentropy ${show(entropy[i])} nats`;
      const on = (event) => showTip(event, lines);
      return make("span", { style: `background: ${shade(weight[i])}`, tabindex: "0", onpointerenter: on, onpointermove: on, onfocus: on, onpointerleave: hideTip, onblur: hideTip }, token);
    }));
  }
  function completions() {
    const having = content.runs.map((run, i) => i).filter((i) => content.runs[i].completions.length);
    if (!having.length) return;
    const part = section("Completions", "Colour is the token's weight: red below 1, blue above, violet below 0, where the push is reversed. Point at a token, or tap it, for its numbers.");
    const holder = make("div");
    let run = having[0];
    let at = 0;
    const steps = () => [...new Set(content.runs[run].completions.map((entry) => entry.step))];
    const slider = make("input", { type: "range", min: "0", "aria-label": "step of the completions", id: "completion-step", oninput: () => { at = Number(slider.value); update(); } });
    const label = make("output", { id: "completion-label" });
    function update() {
      const step = steps()[at];
      label.textContent = `step ${step}`;
      holder.replaceChildren(...content.runs[run].completions.filter((entry) => entry.step === step).map((entry) => {
        const rewards = Object.entries(entry.rewards).map(([name, value]) => `${name} ${show(value)}`).join(", ");
        return make("div", { class: "completion" }, make("div", { class: "question" }, entry.prompt), heatMap(entry),
          make("div", { class: "soft" }, `${rewards}${rewards ? ", " : ""}advantage ${show(entry.advantage)}`));
      }));
    }
    function choose(index) {
      run = index;
      slider.max = String(steps().length - 1);
      // The last with a damped token, or else with an advantage, or else the last.
      const entries = content.runs[run].completions;
      const telling = entries.findLast((entry) => entry.tokens?.weight.some((w) => w < 0.5)) ?? entries.findLast((entry) => entry.advantage);
      at = telling ? steps().indexOf(telling.step) : steps().length - 1;
      slider.value = String(at);
      update();
    }
    part.append(make("div", { class: "controls" }, runChooser(having, choose), slider, label), holder);
    choose(run);
  }

  function skipped() {
    if (!content.skipped.length) return;
    const part = section("Left out");
    part.append(make("ul", { class: "skipped" }, ...content.skipped.map((text) => make("li", {}, text))));
  }

  conclusions();
  overview();
  curves();
  quantiles();
  histograms();
  entropyChanges();
  tokens();
  completions();
  skipped();
  drawAll();
  let width = innerWidth;
  addEventListener("resize", () => { if (innerWidth !== width) { width = innerWidth; drawAll(); } });
  addEventListener("scroll", hideTip, { passive: true });
  dark.addEventListener("change", drawAll);
  main.addEventListener("pointerleave", hideTip);
  document.documentElement.dataset.ready = "yes";
})();
