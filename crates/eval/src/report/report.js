"use strict";
for (const table of document.querySelectorAll("table")) {
  const heads = [...table.tHead.rows[0].cells];
  heads.forEach((head, column) => head.firstChild.addEventListener("click", () => {
    const up = head.getAttribute("aria-sort") === "descending";
    heads.forEach(other => other.removeAttribute("aria-sort"));
    head.setAttribute("aria-sort", up ? "ascending" : "descending");
    const numbers = head.classList.contains("n");
    const value = row => {
      const cell = row.cells[column];
      if (!numbers) return cell.textContent;
      return cell.dataset.v === undefined ? -Infinity : Number(cell.dataset.v);
    };
    const order = (a, b) => numbers ? a - b : a.localeCompare(b);
    const rows = [...table.tBodies[0].rows];
    rows.sort((a, b) => (up ? 1 : -1) * order(value(a), value(b)));
    table.tBodies[0].append(...rows);
  }));
}

const data = JSON.parse(document.getElementById("samples").textContent);
const make = (tag, kind, text) => {
  const node = document.createElement(tag);
  if (kind) node.className = kind;
  if (text !== undefined) node.textContent = text;
  return node;
};
const controls = document.querySelector(".controls");
const choice = (label, names) => {
  const select = make("select");
  names.forEach((name, i) => select.append(new Option(name, i)));
  const around = make("label", "", label);
  around.append(select);
  if (names.length > 1) controls.append(around);
  select.addEventListener("change", show);
  return select;
};
const short = text => text.length > 70 ? text.slice(0, 67) + "…" : text;
const prompt = choice("prompt", data.prompts.map(p => short(p.id + ": " + p.question)));
const preference = choice("preference", data.preferences);
const sample = choice("sample", data.samples.map(String));
const reading = document.querySelector(".reading");
const colour = (expert, weight) => `rgba(${data.colours[expert % data.colours.length]},${0.08 + 0.42 * Math.min(Math.max(weight, 0), 1)})`;

function card(item) {
  const box = make("article", "card");
  box.append(make("h3", "", data.strategies[item.s]));
  const facts = ["utility " + (item.u?.toFixed(3) ?? "missing"), ...Object.entries(item.d).map(([d, r]) => `${d} ${r?.toFixed(2) ?? "missing"}`)];
  facts.push(`${item.k.length} tokens, ${item.e ? "ended" : "cut at the limit"}`);
  box.append(make("div", "hint", facts.join(" · ")));
  const text = make("div", "response");
  const width = item.x.length;
  item.k.forEach((piece, t) => {
    const weights = item.w.slice(t * width, (t + 1) * width);
    const lead = weights.indexOf(Math.max(...weights));
    const token = make("span", "", piece);
    token.tabIndex = 0;
    if (width > 0) token.style.background = colour(item.x[lead], weights[lead] / 100);
    const parts = item.x.map((e, i) => `${data.experts[e]} ${(weights[i] / 100).toFixed(2)}`);
    parts.push(`log p ${item.l[t] ?? "missing"}`);
    if (item.g.length) parts.push(`KL to base ${item.g[t] ?? "missing"}`);
    token.title = parts.join(", ");
    const tell = () => { reading.textContent = `“${piece}”: ${token.title}`; };
    token.addEventListener("mouseenter", tell);
    token.addEventListener("focus", tell);
    text.append(token);
  });
  box.append(text);
  const legend = make("div", "legend hint");
  for (const e of item.x) {
    const name = make("span", "", data.experts[e]);
    name.style.background = colour(e, 1);
    legend.append(name);
  }
  box.append(legend);
  return box;
}

function show() {
  const p = Number(prompt.value), f = Number(preference.value), n = data.samples[Number(sample.value)];
  document.querySelector(".question").textContent = data.prompts[p].question;
  const own = data.items.filter(i => i.p === p && i.f === f && i.n === n);
  own.sort((a, b) => a.s - b.s);
  document.querySelector(".cards").replaceChildren(...own.map(card));
}
show();
