"use strict";
// Browser of outputs: person × policy × prompt. Everything that people or models wrote goes in by textContent.
(() => {
  const data = JSON.parse(document.getElementById("outputs-data").textContent);
  const root = document.getElementById("outputs");
  if (!root) return;
  const PAGE = 12;
  const MOST = 3, LEAST = 0.05;  // axes that are named as reasons, and nats below which one is none
  const make = (name, text, className) => {
    const element = document.createElement(name);
    if (text !== undefined) element.textContent = text;
    if (className) element.className = className;
    return element;
  };
  const chooser = (label, names, all) => {
    const select = make("select");
    if (all) select.append(new Option(all, ""));
    names.forEach((name, index) => select.append(new Option(name, String(index))));
    const box = make("label", label + " ");
    box.append(select);
    controls.append(box);
    select.addEventListener("change", () => show(true));
    return select;
  };
  const controls = make("div", undefined, "controls");
  const person = chooser("person", data.people, "all");
  const policy = chooser("policy", data.policies, "all");
  const order = chooser("order", ["by disagreement", "by prompt"]);
  const filter = make("input");
  filter.type = "search";
  filter.placeholder = "words in prompt or answer";
  const label = make("label", "filter ");
  label.append(filter);
  controls.append(label);
  filter.addEventListener("input", () => show(true));
  const count = make("p", undefined, "note");
  count.setAttribute("role", "status");
  const list = make("div");
  const more = make("button", "more");
  more.type = "button";
  more.addEventListener("click", () => { shown += PAGE; show(false); });
  root.append(controls, count, list, more);
  let shown = PAGE;

  const words = (cell) => [data.prompts[cell.q], ...cell.t.flat().map((index) => data.texts[index])];
  const chosen = () => {
    const wanted = filter.value.toLowerCase().trim();
    const found = data.cells.filter((cell) =>
      (person.value === "" || cell.p === Number(person.value)) &&
      (!wanted || words(cell).some((text) => text.toLowerCase().includes(wanted))));
    if (order.value === "0") return found.sort((a, b) => b.d - a.d);
    return found.sort((a, b) => a.q - b.q || a.p - b.p);
  };
  const reasons = (person, text) => {
    if (!data.axes) return "";
    const parts = data.phi[text].map((value, axis) => [data.axes[axis], data.coef[person][axis] * value]);
    const strong = parts.filter(([, part]) => Math.abs(part) >= LEAST).sort((a, b) => Math.abs(b[1]) - Math.abs(a[1]));
    return strong.slice(0, MOST).map(([axis, part]) => `${axis} ${part > 0 ? "+" : "−"}${Math.abs(part).toFixed(2)}`).join("; ");
  };
  const answer = (cell, index) => {
    const box = make("div", undefined, "answer");
    const worth = cell.w[index];
    const best = cell.w.every((other) => other === null || worth === null || other <= worth);
    const head = make("h4", data.policies[index]);
    if (worth !== null) head.append(make("span", " " + worth.toFixed(2), best ? "worth best" : "worth"));
    box.append(head);
    cell.t[index].forEach((text) => {
      box.append(make("p", data.texts[text] || "(nothing)", "text"));
      const said = reasons(cell.p, text);
      if (said) box.append(make("p", said, "note reasons"));
    });
    return box;
  };
  const show = (anew) => {
    if (anew) shown = PAGE;
    const found = chosen();
    count.textContent = `${Math.min(shown, found.length)} of ${found.length} shown`;
    list.replaceChildren(...found.slice(0, shown).map((cell) => {
      const article = make("article");
      article.tabIndex = 0;
      article.append(make("h3", `${data.people[cell.p]}`));
      article.append(make("p", data.prompts[cell.q], "text asked"));
      const row = make("div", undefined, "answers");
      data.policies.forEach((_, index) => {
        if (policy.value === "" || index === Number(policy.value)) row.append(answer(cell, index));
      });
      article.append(row);
      return article;
    }));
    more.hidden = shown >= found.length;
  };
  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    const typing = ["INPUT", "SELECT", "TEXTAREA"].includes(document.activeElement.tagName);
    if (event.key === "Escape" && typing) { document.activeElement.blur(); return; }
    if (typing) return;
    if (event.key === "/") { event.preventDefault(); filter.focus(); return; }
    const step = { j: 1, k: -1 }[event.key];
    if (!step) return;
    const articles = [...list.children];
    const at = articles.indexOf(document.activeElement.closest("article"));
    if (step > 0 && at === articles.length - 1 && !more.hidden) { more.click(); list.children[at + 1].focus(); return; }
    const next = articles[Math.max(0, Math.min(articles.length - 1, at + step))];
    if (next) { event.preventDefault(); next.focus(); }
  });
  show(true);
})();
