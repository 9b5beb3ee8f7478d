"use strict";
(() => {
  const all = (selector, within = document) => [...within.querySelectorAll(selector)];
  const text = (cell) => cell.textContent.trim();

  // Theme: what the system says, until somebody chooses.
  const theme = document.getElementById("theme");
  const dark = matchMedia("(prefers-color-scheme: dark)");
  const themes = ["as the system", "light", "dark"];
  let chosen = 0;
  const paint = () => {
    const name = chosen === 0 ? (dark.matches ? "dark" : "light") : themes[chosen];
    document.documentElement.dataset.theme = name;
    theme.textContent = `Theme: ${themes[chosen]}`;
  };
  theme.hidden = false;
  theme.addEventListener("click", () => { chosen = (chosen + 1) % themes.length; paint(); });
  dark.addEventListener("change", paint);
  // Paper is white.
  addEventListener("beforeprint", () => { document.documentElement.dataset.theme = "light"; });
  addEventListener("afterprint", paint);
  paint();

  // Switches of the drawings: each shows one view of the figures in its section.
  all("fieldset.switch").forEach((choice) => {
    const show = () => {
      const view = choice.querySelector("input:checked").value;
      all("figure[data-view]", choice.closest("section")).forEach((f) => f.classList.toggle("off", f.dataset.view !== view));
    };
    choice.addEventListener("change", show);
    show();
  });
  all("input[data-series]").forEach((box) => box.addEventListener("change", () => {
    all(`g.series.s${box.dataset.series}`).forEach((g) => g.classList.toggle("off", !box.checked));
  }));

  // Tables. Numbers that come from somewhere have a class that says from where.
  const ORIGINS = { p: "published", m: "measured", d: "derived" };
  const TOLD = "td.p, td.m, td.d";
  const originOf = (cell) => Object.keys(ORIGINS).find((name) => cell.classList.contains(name));
  const number = (cell) => (cell.dataset.v === undefined ? NaN : Number(cell.dataset.v));

  class DataTable {
    constructor(section) {
      this.section = section;
      this.heads = all("thead th", section);
      this.rows = all("tbody tr", section);
      this.body = section.querySelector("tbody");
      this.status = section.querySelector(".status");
      section.querySelector(".tools").hidden = false;
      this.heads.forEach((head, place) => this.sortable(head, place));
      this.chooser(section.querySelector(".choices"));
      section.querySelector("input[type=search]").addEventListener("input", (e) => this.filter(e.target.value));
      all("[data-copy]", section).forEach((b) => b.addEventListener("click", () => this.copy(b.dataset.copy)));
      this.origins();
    }

    sortable(head, place) {
      const button = document.createElement("button");
      button.type = "button";
      button.textContent = head.textContent;
      head.replaceChildren(button);
      button.addEventListener("click", () => {
        const up = head.getAttribute("aria-sort") !== "ascending";
        this.heads.forEach((other) => other.removeAttribute("aria-sort"));
        head.setAttribute("aria-sort", up ? "ascending" : "descending");
        this.sort(place, up);
      });
    }

    sort(place, up) {
      const numeric = this.heads[place].classList.contains("number");
      const compare = (a, b) => {
        const [x, y] = [a.cells[place], b.cells[place]];
        if (!numeric) return (up ? 1 : -1) * text(x).localeCompare(text(y), "en", { numeric: true });
        const [p, q] = [number(x), number(y)];
        if (Number.isNaN(p) || Number.isNaN(q)) return Number.isNaN(p) - Number.isNaN(q); // no number: last, both ways
        return (up ? 1 : -1) * (p - q);
      };
      this.rows.sort(compare);
      this.body.append(...this.rows);
    }

    filter(words) {
      const wanted = words.toLowerCase().split(/\s+/).filter(Boolean);
      const keys = this.heads.map((head) => head.dataset.key);
      for (const row of this.rows) {
        row.hidden = !wanted.every((word) => {
          const [key, rest] = word.includes(":") ? word.split(/:(.*)/) : ["", word];
          const place = keys.indexOf(key);
          const cells = place < 0 ? [...row.cells] : [row.cells[place]];
          const sought = place < 0 ? word : rest;
          return cells.some((cell) => text(cell).toLowerCase().includes(sought));
        });
      }
      const left = this.rows.filter((row) => !row.hidden).length;
      this.status.textContent = `${left} of ${this.rows.length} rows`;
    }

    // The list of columns covers the table: a click elsewhere or Escape puts it away.
    chooser(choices) {
      const list = choices.parentElement;
      document.addEventListener("click", (e) => { if (!list.contains(e.target)) list.open = false; });
      list.addEventListener("keydown", (e) => {
        if (e.key === "Escape") { list.open = false; list.querySelector("summary").focus(); }
      });
      this.heads.forEach((head, place) => {
        const label = document.createElement("label");
        const box = document.createElement("input");
        box.type = "checkbox";
        box.checked = !head.hidden;
        box.dataset.column = head.dataset.key;
        box.addEventListener("change", () => {
          head.hidden = !box.checked;
          this.rows.forEach((row) => { row.cells[place].hidden = !box.checked; });
        });
        label.append(box, ` ${text(head)}`);
        choices.append(label);
      });
    }

    // What is shown, in the order in which it is shown; CSV has the unrounded numbers.
    content(exact) {
      const places = this.heads.map((head, place) => (head.hidden ? -1 : place)).filter((place) => place >= 0);
      const rows = this.rows.filter((row) => !row.hidden);
      const write = (cell) => (exact && cell.dataset.v !== undefined ? cell.dataset.v : text(cell));
      return [places.map((place) => text(this.heads[place])), ...rows.map((row) => places.map((p) => write(row.cells[p])))];
    }

    csv() {
      const quote = (word) => (/[",\n]/.test(word) ? `"${word.replaceAll('"', '""')}"` : word);
      return this.content(true).map((line) => line.map(quote).join(",")).join("\n") + "\n";
    }

    tex() {
      const special = { "\\": "\\textbackslash{}", "~": "\\textasciitilde{}", "^": "\\^{}", "±": "$\\pm$", "↑": "$\\uparrow$",
        "↓": "$\\downarrow$", "–": "--", "<": "$<$", ">": "$>$", "×": "$\\times$" };
      const escape = (word) => word.replace(/[\\~^±↑↓–<>×]|[&%$#_{}]/g, (c) => special[c] || `\\${c}`);
      const [heads, ...rows] = this.content(false).map((line) => line.map(escape));
      const shown = this.heads.filter((head) => !head.hidden);
      const align = shown.map((head) => (head.classList.contains("number") ? "r" : "l")).join("");
      const line = (cells) => `${cells.join(" & ")} \\\\`;
      return [`\\begin{tabular}{${align}}`, "\\toprule", line(heads), "\\midrule", ...rows.map(line), "\\bottomrule",
        "\\end{tabular}", ""].join("\n");
    }

    async copy(form) {
      const content = form === "csv" ? this.csv() : this.tex();
      this.section.dataset.copied = content;
      try {
        await navigator.clipboard.writeText(content);
        this.status.textContent = `copied as ${form === "csv" ? "CSV" : "LaTeX"}`;
      } catch {
        this.fallback(content);
      }
    }

    // Where the browser forbids the clipboard (a page from disk, in some), show the text to be copied by hand.
    fallback(content) {
      const area = document.createElement("textarea");
      area.value = content;
      area.rows = 8;
      area.style.width = "100%";
      area.setAttribute("aria-label", "Copy this text");
      this.section.querySelector("textarea")?.remove();
      this.section.querySelector(".tools").after(area);
      area.select();
      const done = document.execCommand("copy");
      this.status.textContent = done ? "copied" : "select the text below and copy it";
      if (done) area.remove();
    }

    // One stop of the tab key for all numbers; arrows go from one to the next, Enter tells where it comes from.
    origins() {
      const cells = () => all(TOLD, this.body).filter((c) => !c.hidden && !c.parentElement.hidden);
      const first = cells()[0];
      if (first) first.tabIndex = 0;
      this.body.addEventListener("click", (e) => {
        const cell = e.target.closest(TOLD);
        if (cell && !getSelection().toString()) tell(this, cell);
      });
      this.body.addEventListener("keydown", (e) => {
        const cell = e.target.closest(TOLD);
        if (!cell) return;
        if (e.key === "Enter" || e.key === " ") { e.preventDefault(); tell(this, cell); return; }
        const step = { ArrowRight: [0, 1], ArrowLeft: [0, -1], ArrowDown: [1, 0], ArrowUp: [-1, 0] }[e.key];
        if (!step) return;
        e.preventDefault();
        const next = this.neighbour(cell, ...step);
        if (next) { cell.tabIndex = -1; next.tabIndex = 0; next.focus(); }
      });
    }

    neighbour(cell, down, right) {
      let [row, place] = [this.rows.indexOf(cell.parentElement) + down, cell.cellIndex + right];
      while (this.rows[row] && this.rows[row].cells[place]) {
        const next = this.rows[row].cells[place];
        if (originOf(next) && !next.hidden && !next.parentElement.hidden) return next;
        [row, place] = [row + down, place + right];
      }
      return null;
    }
  }

  // Where a number comes from.
  const dialog = document.getElementById("origin");
  const tell = (table, cell) => {
    const head = table.heads[cell.cellIndex];
    const { v, low, high, source } = cell.dataset;
    const origin = ORIGINS[originOf(cell)];
    const row = cell.parentElement;
    const runs = (row.dataset.runs || row.id.replace(/^run-/, "")).split(" ").filter((id) => id && !id.startsWith("group-"));
    const lines = [["Shown", text(cell)], ["What", head.title || text(head)], ["Origin", origin]];
    if (v !== undefined) lines.push(["Unrounded", v]);
    if (low !== undefined) lines.push(["From, to", `${low}, ${high}`]);
    if (origin !== "published" && v !== undefined && (runs.length || cell.dataset.n)) lines.push(["Seeds", cell.dataset.n || "1"]);
    if (source) lines.push(["Source", source]);
    const list = dialog.querySelector("dl");
    list.replaceChildren(...lines.flatMap(([name, value]) => pair(name, value)));
    if (runs.length && origin !== "published") {
      const [term, value] = pair(runs.length > 1 ? "Runs" : "Run", "");
      runs.forEach((run, i) => value.append(i ? ", " : "", link(run)));
      const [term2, value2] = pair("Files", "summary.json and ledger.json in the run's folder of the run store");
      list.append(term, value, term2, value2);
    }
    dialog.returnFocus = cell;
    dialog.showModal();
  };
  const pair = (name, value) => {
    const [term, what] = [document.createElement("dt"), document.createElement("dd")];
    [term.textContent, what.textContent] = [name, value];
    return [term, what];
  };
  const link = (run) => {
    if (!document.getElementById(`run-${run}`)) return run;
    const a = document.createElement("a");
    a.href = `#run-${run}`;
    a.textContent = run;
    a.addEventListener("click", () => dialog.close());
    return a;
  };
  dialog.addEventListener("close", () => dialog.returnFocus?.focus());

  window.fractrain = all("section.data").map((section) => new DataTable(section));
})();
