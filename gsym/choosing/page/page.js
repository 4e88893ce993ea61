"use strict";
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const { candidates, best, simplest, scoreName } = data;
  const $ = (id) => document.getElementById(id);
  const unpack = (text, Type) =>
    new Type(Uint8Array.from(atob(text), (c) => c.charCodeAt(0)).buffer);
  for (const c of candidates) {
    c.labels = unpack(c.labels, Uint16Array);
    c.colour = unpack(c.colour, Uint8Array);
    if (c.matrix) c.matrix.values = unpack(c.matrix.values, Int16Array);
  }
  const nodes = [...$("nodes").children];
  const names = nodes.map((node) => node.firstElementChild.textContent);
  const rows = [...document.querySelectorAll("#all tbody tr")];
  const dial = $("dial");
  const count = (n, what) => `${n.toLocaleString("en")} ${what}${n === 1 ? "" : "s"}`;
  const minus = (text) => String(text).replace("-", "\u2212");
  let at = best;
  let chosen = null;

  // The number that a drawn cluster has in Python.
  const number = (c, label) => (c.cluster ? c.cluster[label] : label);

  function paintNodes(c) {
    nodes.forEach((node, i) => {
      const label = c.labels[i];
      const alone = c.sizes[label] === 1 ? " alone" : "";
      const lit = chosen !== null && c.labels[chosen] === label ? " lit" : "";
      node.setAttribute("class", `c${c.colour[label]}${alone}${lit}`);
    });
    if (data.cells) paintBorders(c);
    $("graph").classList.toggle("choosing", chosen !== null);
    $("repeats").hidden = c.colour.length === new Set(c.colour).size;
    let about = "Point at a node to see its cluster.";
    if (chosen !== null) {
      const label = c.labels[chosen];
      const size = c.sizes[label];
      about = `${names[chosen]}: cluster ${number(c, label)}, `;
      about += data.coarsened || size > 1 ? `of ${count(size, "node")}.` : "alone.";
    }
    $("about").textContent = about;
  }

  // Lines between neighbouring cells of a grid that lie in different clusters.
  function paintBorders(c) {
    const { cells, columns } = data;
    const side = 1000 / columns;
    let path = "";
    cells.forEach((node, i) => {
      const x = ((i % columns) + 1) * side;
      const y = (Math.floor(i / columns) + 1) * side;
      if ((i + 1) % columns && c.labels[node] !== c.labels[cells[i + 1]])
        path += `M${x.toFixed(1)} ${(y - side).toFixed(1)}V${y.toFixed(1)}`;
      if (i + columns < cells.length && c.labels[node] !== c.labels[cells[i + columns]])
        path += `M${(x - side).toFixed(1)} ${y.toFixed(1)}H${x.toFixed(1)}`;
    });
    $("borders").setAttribute("d", path);
  }

  function paintSizes(c) {
    const bar = $("sizes");
    const order = [...c.sizes.keys()].sort((a, b) => c.sizes[b] - c.sizes[a] || a - b);
    const total = c.sizes.reduce((a, b) => a + b, 0);
    const parts = [];
    let x = 0;
    for (const label of order) {
      const width = (c.sizes[label] / total) * 1000;
      // Slivers could not be told apart: the rest is one grey piece.
      const rest = width < 1.6;
      const part = document.createElementNS("http://www.w3.org/2000/svg", "rect");
      part.setAttribute("class", rest ? "rest" : `c${c.colour[label]}`);
      part.setAttribute("x", x.toFixed(2));
      part.setAttribute("width", Math.max((rest ? 1000 - x : width) - (width > 6 ? 1.5 : 0.3), 0.5).toFixed(2));
      part.setAttribute("height", 30);
      parts.push(part);
      x += width;
      if (rest) break;
    }
    bar.replaceChildren(...parts);
  }

  function mix(a, b, share) {
    return a.map((v, i) => Math.round(v + (b[i] - v) * share));
  }

  function paintMatrix(c) {
    const canvas = $("matrix");
    if (!canvas) return;
    const m = c.matrix;
    for (const id of ["matrix", "matrix-scale", "cell"]) $(id).hidden = !m;
    $("no-matrix").hidden = Boolean(m);
    if (!m) return;
    const style = getComputedStyle(document.documentElement);
    const colour = (name) => style.getPropertyValue(name).trim();
    const rgb = (name) => [1, 3, 5].map((i) => parseInt(colour(name).slice(i, i + 2), 16));
    const [zero, low, high] = ["--zero", "--low", "--high"].map(rgb);
    const pen = canvas.getContext("2d");
    const strip = m.colours ? 16 : 0;
    const side = canvas.width - strip;
    const edge = (i) => strip + Math.round((i * side) / m.cells);
    pen.clearRect(0, 0, canvas.width, canvas.height);
    for (let i = 0; i < m.cells; i++) {
      for (let j = 0; j < m.cells; j++) {
        const value = m.values[i * m.cells + j];
        if (value === -32768) continue;
        pen.fillStyle = `rgb(${mix(zero, value < 0 ? low : high, Math.abs(value) / 32767)})`;
        pen.fillRect(edge(j), edge(i), edge(j + 1) - edge(j), edge(i + 1) - edge(i));
      }
    }
    const gap = m.cells <= 24 ? 2 : 0;
    if (strip) {
      m.colours.forEach((own, i) => {
        pen.fillStyle = own < 0 ? colour("--faint") : colour(`--c${own}`);
        const [from, length] = [edge(i) + gap / 2, edge(i + 1) - edge(i) - gap];
        pen.fillRect(from, 0, length, strip - 5);
        pen.fillRect(0, from, strip - 5, length);
      });
    }
    $("low").textContent = m.largest ? `\u2212${m.top}` : "0";
    $("high").textContent = m.top;
    $("binned").textContent =
      m.cells < m.parts ? ` ${count(m.parts, m.unit)} are averaged to ${m.cells} by ${m.cells} cells.` : "";
    $("cell").textContent = "Point at a cell to read it.";
  }

  // Labels are written out here, so that the file holds them once.
  const withLabels = (c, text) =>
    c.listed ? text.replace("LABELS", () => Array.from(c.labels).join(", ")) : text;
  const fullScript = (c) => {
    const [first, between, end] = data.script;
    // Of groups that are too large to be listed only the best is in a file.
    const built = c.group === null ? candidates[best] : c;
    return first + withLabels(built, built.group) + between + built.net + end;
  };

  const address = (kind, text) => {
    const bytes = Array.from(new TextEncoder().encode(text), (b) => String.fromCharCode(b));
    return `data:${kind};charset=utf-8;base64,${btoa(bytes.join(""))}`;
  };

  function paintMembers(c) {
    if (!$("members-rows")) return;
    const labels = Array.from(c.labels, (label) => number(c, label));
    const members = new Map();
    labels.forEach((label, i) => {
      if (!members.has(label)) members.set(label, []);
      members.get(label).push(names[i]);
    });
    const rows = [...members.keys()].sort((a, b) => a - b).map((label) => {
      const row = document.createElement("tr");
      const those = members.get(label);
      for (const [tag, text] of [["th", label], ["td", those.length], ["td", those.join(", ")]]) {
        row.append(document.createElement(tag));
        row.lastChild.textContent = text;
      }
      row.firstChild.scope = "row";
      row.children[1].className = "num";
      return row;
    });
    $("members-rows").replaceChildren(...rows);
    $("members-of").textContent = c.clusters;
    const quoted = (text) => (/[",\r\n]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text);
    const lines = labels.map((label, i) => `${quoted(names[i])},${label}\n`);
    $("save-csv").href = address("text/csv", `node,cluster\n${lines.join("")}`);
    $("save-json").href = address(
      "application/json",
      JSON.stringify({ group: c.name || c.clusters, names, labels }));
  }

  function show(index, { quiet = false } = {}) {
    at = Math.max(0, Math.min(candidates.length - 1, index));
    const c = candidates[at];
    dial.value = at;
    dial.setAttribute("aria-valuetext", `${c.clusters}, ${scoreName} ${c.score}`);
    paintNodes(c);
    paintSizes(c);
    paintMatrix(c);
    $("now-clusters").textContent = c.clusters;
    $("now-name").textContent = c.name;
    $("score").textContent = c.score;
    $("above").textContent = at === best ? "the lowest" : c.above;
    $("clusters").textContent = c.clusters;
    $("sizes-text").textContent = c.sizesText;
    $("dim").textContent = c.dim;
    const old = document.querySelectorAll(".facts .part");
    old.forEach((part) => part.remove());
    for (const [name, value, meaning] of c.parts) {
      const part = document.createElement("div");
      part.className = "part";
      for (const [tag, text] of [["dt", name], ["dd", value], ["dd", meaning]]) {
        part.append(document.createElement(tag));
        part.lastChild.textContent = text;
      }
      part.lastChild.className = "small";
      document.querySelector(".facts").append(part);
    }
    for (const end of ["x1", "x2"]) $("cursor").setAttribute(end, c.x);
    $("here").setAttribute("cx", c.x);
    $("here").setAttribute("cy", c.y === null ? -20 : c.y);
    $("code").firstElementChild.textContent = withLabels(c, c.code);
    $("script").firstElementChild.textContent = fullScript(c);
    paintMembers(c);
    rows.forEach((row, i) =>
      i === at ? row.setAttribute("aria-current", "true") : row.removeAttribute("aria-current"));
    $("finer").disabled = at === 0;
    $("coarser").disabled = at === candidates.length - 1;
    $("to-best").setAttribute("aria-pressed", at === best);
    if ($("to-simplest")) $("to-simplest").setAttribute("aria-pressed", at === simplest);
    if (!quiet) for (const name of ["copy", "copy-script"]) $(name).textContent = "Copy";
  }

  dial.disabled = candidates.length < 2;
  dial.addEventListener("input", () => show(Number(dial.value)));
  $("finer").addEventListener("click", () => show(at - 1));
  $("coarser").addEventListener("click", () => show(at + 1));
  $("to-best").addEventListener("click", () => show(best));
  if ($("to-simplest")) $("to-simplest").addEventListener("click", () => show(simplest));
  rows.forEach((row, i) => row.querySelector("button").addEventListener("click", () => show(i)));

  document.addEventListener("keydown", (event) => {
    if (event.altKey || event.ctrlKey || event.metaKey || event.shiftKey) return;
    if (event.target.closest("input, pre, .scroll")) return;
    const step = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
    if (step) {
      event.preventDefault();
      show(at + step);
    }
  });

  const curve = $("curve");
  const follow = (event) => {
    const box = curve.getBoundingClientRect();
    const x = ((event.clientX - box.left) / box.width) * 560;
    const y = ((event.clientY - box.top) / box.height) * 300;
    // Candidates with equally many clusters stand above each other.
    const away = candidates.map((c) => Math.hypot(c.x - x, c.y === null ? 300 : 0.2 * (c.y - y)));
    show(away.indexOf(Math.min(...away)));
  };
  curve.addEventListener("pointerdown", (event) => {
    curve.setPointerCapture(event.pointerId);
    follow(event);
  });
  curve.addEventListener("pointermove", (event) => {
    if (event.buttons & 1) follow(event);
  });

  const choose = (node) => {
    if (node === chosen) return;
    chosen = node;
    paintNodes(candidates[at]);
  };
  const picked = (event) => {
    const i = nodes.indexOf(event.target);
    choose(i < 0 ? null : i);
  };
  $("graph").addEventListener("pointerover", picked);
  $("graph").addEventListener("click", picked);
  $("graph").addEventListener("pointerleave", (event) => {
    if (event.pointerType === "mouse") choose(null);
  });
  if ($("find")) {
    $("find").addEventListener("input", () => {
      const wanted = $("find").value.trim().toLowerCase();
      const i = names.findIndex((name) => name.toLowerCase() === wanted);
      choose(i < 0 ? null : i);
    });
  }

  if ($("matrix")) {
    $("matrix").addEventListener("pointermove", (event) => {
      const m = candidates[at].matrix;
      const box = $("matrix").getBoundingClientRect();
      const strip = m.colours ? 16 / 720 : 0;
      const cell = (share) => Math.floor(((share - strip) / (1 - strip)) * m.cells);
      const j = cell((event.clientX - box.left) / box.width);
      const i = cell((event.clientY - box.top) / box.height);
      if (i < 0 || j < 0 || i >= m.cells || j >= m.cells) return;
      const raw = m.values[i * m.cells + j];
      const value = raw === -32768 ? "unknown" : minus(Number(((raw / 32767) * m.largest).toPrecision(3)));
      const where = m.order
        ? `From ${m.unit} ${m.order[j]} to ${m.unit} ${m.order[i]}`
        : `Row ${i + 1}, column ${j + 1} of the averaged map`;
      $("cell").textContent = `${where}: ${value}`;
    });
  }

  for (const [name, of] of [["copy", "code"], ["copy-script", "script"]]) {
    $(name).addEventListener("click", async () => {
      try {
        await navigator.clipboard.writeText($(of).textContent);
        $(name).textContent = "Copied";
      } catch {
        // Browsers may forbid the clipboard to files: leave the text selected instead.
        getSelection().selectAllChildren($(of));
        $(name).textContent = document.execCommand("copy") ? "Copied" : "Selected: press Ctrl+C";
      }
    });
  }

  // Words explained where they stand, for the pointer, the keyboard and a finger.
  const tip = $("tip");
  const explain = (word) => {
    tip.textContent = $(word.getAttribute("aria-describedby")).textContent;
    tip.hidden = false;
    const box = word.getBoundingClientRect();
    const room = document.documentElement.clientWidth - tip.offsetWidth - 12;
    tip.style.left = `${Math.max(12, Math.min(box.left, room)) + scrollX}px`;
    const above = box.bottom + tip.offsetHeight + 12 > innerHeight;
    tip.style.top = `${(above ? box.top - tip.offsetHeight - 6 : box.bottom + 6) + scrollY}px`;
  };
  for (const word of document.querySelectorAll(".term")) {
    for (const kind of ["pointerenter", "focus", "click"])
      word.addEventListener(kind, () => explain(word));
    for (const kind of ["pointerleave", "blur"])
      word.addEventListener(kind, () => (tip.hidden = true));
  }
  document.addEventListener("keydown", (event) => {
    if (event.key === "Escape") tip.hidden = true;
  });

  const repaint = () => paintMatrix(candidates[at]);
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", repaint);
  matchMedia("print").addEventListener("change", repaint);
  let wasOpen = false;
  addEventListener("beforeprint", () => {
    wasOpen = $("all").open;
    $("all").open = true;
    repaint();
  });
  addEventListener("afterprint", () => {
    $("all").open = wasOpen;
    repaint();
  });

  document.documentElement.classList.add("live");
  show(best);
})();
