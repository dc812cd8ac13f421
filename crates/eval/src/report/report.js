"use strict";
// Tables: a click on a heading sorts; rows that fold stay the last ones.
const sortable = table => {
  const heads = [...table.tHead.rows[0].cells];
  const folded = table.querySelectorAll(".fold").length;
  heads.forEach((head, column) => head.querySelector("button")?.addEventListener("click", () => {
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
    rows.forEach((row, i) => row.classList.toggle("fold", i >= rows.length - folded));
    table.tBodies[0].append(...rows);
  }));
};
document.querySelectorAll("table").forEach(sortable);
// Large tables are built when they are opened.
for (const fold of document.querySelectorAll("details")) {
  fold.addEventListener("toggle", () => {
    const late = fold.querySelector("template");
    if (!late) return;
    late.replaceWith(late.content);
    fold.querySelectorAll("table").forEach(sortable);
  });
}

// The browser of responses.
const data = JSON.parse(document.getElementById("samples").textContent);
const make = (tag, kind, text) => {
  const node = document.createElement(tag);
  if (kind) node.className = kind;
  if (text !== undefined) node.textContent = text;
  return node;
};
const reading = document.querySelector(".reading");
const controls = document.querySelector(".controls");
const minus = text => text.replace("-", "−");
const labelled = (label, control) => {
  const around = make("label", "", label);
  around.append(control);
  controls.append(around);
  return control;
};
const choice = (label, first, names) => {
  const select = make("select");
  first.forEach(([name, value]) => select.append(new Option(name, value)));
  names.forEach((name, i) => select.append(new Option(name, i)));
  if (select.options.length > 2 || first.length > 1) labelled(label, select);
  select.addEventListener("change", () => show(0));
  return select;
};
const short = text => text.length > 60 ? text.slice(0, 57) + "…" : text;
const all = [["all", ""]];
const prompt = choice("prompt", all, data.prompts.map(p => short(p.id + ": " + p.question)));
const preference = choice("preference", all, data.preferences.map(p => p[0]));
const strategy = choice("strategy", all, data.strategies);
const order = choice("order", [["as asked", "asked"], ["lowest utility first", "low"], ["largest disagreement first", "apart"]], []);
const search = labelled("text", make("input"));
search.type = "search";
search.placeholder = "in question or response";
search.addEventListener("input", () => show(0));
const pager = make("div", "pager");
const step = (text, by) => {
  const button = make("button", "", text);
  button.type = "button";
  button.addEventListener("click", () => show(at + by));
  return button;
};
const count = make("span", "hint");
const back = step("← previous", -1), on = step("next →", 1);
pager.append(back, count, on);
controls.append(pager);

// Cases: one prompt, preference and sample, with the answers of all strategies.
const cases = new Map();
const rank = data.strategies.map((_, i) => data.order.indexOf(i));
for (const item of data.items) {
  const key = [item.f, item.p, item.n].join("/");
  if (!cases.has(key)) cases.set(key, {f: item.f, p: item.p, n: item.n, items: []});
  cases.get(key).items.push(item);
}
const samples = new Set(data.items.map(i => i.n)).size;
for (const one of cases.values()) {
  one.items.sort((a, b) => rank[a.s] - rank[b.s]);
  const worth = one.items.map(i => i.u).filter(u => u !== null);
  one.low = Math.min(...worth);
  one.apart = Math.max(...worth) - one.low;
  one.text = (data.prompts[one.p].question + "\n" + one.items.map(i => i.k.join("")).join("\n")).toLowerCase();
}
const asked = [...cases.values()].sort((a, b) => a.p - b.p || a.f - b.f || a.n - b.n);
let at = 0;

const colour = (expert, weight) => `rgba(${data.colours[expert % data.colours.length]},${0.08 + 0.42 * Math.min(Math.max(weight, 0), 1)})`;
// Tokens that are drawn one by one at a time; longer responses show them on demand.
const TOKENS = 1500;

function drawn(item) {
  const text = make("div", "response");
  const width = item.x.length;
  item.k.forEach((piece, t) => {
    const weights = item.w.slice(t * width, (t + 1) * width);
    const lead = weights.indexOf(Math.max(...weights));
    const token = make("span", "", piece);
    token.tabIndex = 0;
    if (width > 0) token.style.background = colour(item.x[lead], weights[lead] / 100);
    const parts = item.x.map((e, i) => `${data.experts[e]} ${minus((weights[i] / 100).toFixed(2))}`);
    parts.push(`log p ${item.l[t] ?? "missing"}`);
    if (item.g.length) parts.push(`KL to base ${item.g[t] ?? "missing"}`);
    token.title = parts.join(", ");
    const tell = () => { reading.textContent = `“${piece}”: ${token.title}`; };
    token.addEventListener("mouseenter", tell);
    token.addEventListener("focus", tell);
    text.append(token);
  });
  return text;
}

function card(item, budget) {
  const box = make("article", "card");
  box.append(make("h3", "", data.strategies[item.s]));
  const facts = ["utility " + (item.u?.toFixed(3) ?? "missing"), ...Object.entries(item.d).map(([d, r]) => `${d} ${minus(r?.toFixed(2) ?? "missing")}`)];
  facts.push(`${item.k.length} tokens, ${item.e ? "ended" : "cut at the limit"}`);
  box.append(make("div", "hint", facts.join(" · ")));
  if (item.k.length <= budget) {
    box.append(drawn(item));
  } else {
    const plain = make("div", "response", item.k.join(""));
    const button = make("button", "", "show tokens");
    button.type = "button";
    button.addEventListener("click", () => { button.remove(); plain.replaceWith(drawn(item)); });
    box.append(button, plain);
  }
  const legend = make("div", "legend hint");
  for (const e of item.x) {
    const name = make("span", "", data.experts[e]);
    name.style.background = colour(e, 1);
    legend.append(name);
  }
  box.append(legend);
  return box;
}

// The address of a case, which a reader can send on.
const address = one => {
  const parts = [data.preferences[one.f][0], data.prompts[one.p].id, String(one.n)];
  return "#response=" + parts.map(encodeURIComponent).join("/");
};

function chosen() {
  const words = search.value.toLowerCase();
  const keep = (select, value) => select.value === "" || Number(select.value) === value;
  const has = one => strategy.value === "" || one.items.some(i => i.s === Number(strategy.value));
  const list = asked.filter(o => keep(prompt, o.p) && keep(preference, o.f) && has(o) && o.text.includes(words));
  const worth = one => strategy.value === "" ? one.low : one.items.find(i => i.s === Number(strategy.value)).u ?? Infinity;
  if (order.value === "low") list.sort((a, b) => worth(a) - worth(b));
  if (order.value === "apart") list.sort((a, b) => b.apart - a.apart);
  return list;
}

function show(position) {
  const list = chosen();
  at = Math.min(Math.max(position, 0), Math.max(list.length - 1, 0));
  const one = list[at];
  count.textContent = list.length ? `${at + 1} of ${list.length}` : "nothing matches";
  back.disabled = at === 0;
  on.disabled = at >= list.length - 1;
  const head = document.querySelector("div.asked");
  head.replaceChildren();
  reading.textContent = "";
  let budget = TOKENS;
  const items = one ? one.items.filter(i => strategy.value === "" || i.s === Number(strategy.value)) : [];
  if (one) {
    const [name, wish] = data.preferences[one.f];
    const link = make("a", "", "link to this");
    link.href = address(one);
    const facts = make("div", "hint", `${name}: ${wish}${samples > 1 ? ` · sample ${one.n}` : ""} · `);
    facts.append(link);
    head.append(make("div", "wish", data.prompts[one.p].question), facts);
  }
  document.querySelector(".cards").replaceChildren(...items.map(item => {
    const box = card(item, budget);
    budget -= Math.min(budget, item.k.length);
    return box;
  }));
}

// What the address names: a case, or a part of the page that may be folded.
function visit() {
  const hash = location.hash.slice(1);
  if (hash.startsWith("response=")) {
    const [name, id, n] = hash.slice(9).split("/").map(part => { try { return decodeURIComponent(part); } catch { return part; } });
    [prompt, preference, strategy].forEach(select => { select.value = ""; });
    order.value = "asked";
    search.value = "";
    const wanted = asked.findIndex(o => data.preferences[o.f][0] === name && data.prompts[o.p].id === id && String(o.n) === n);
    show(wanted);
    document.getElementById("responses").scrollIntoView();
    if (wanted < 0) count.textContent = "that response is not among the prompts on this page; tables/responses.csv has it";
    return;
  }
  const target = hash && document.getElementById(hash);
  const fold = target && target.closest("details");
  if (fold) fold.open = true;
}
show(0);
visit();
window.addEventListener("hashchange", visit);
