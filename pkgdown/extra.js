// The table of contents, the buttons that copy code, and the search. Pages need no other script of
// their own, and also work as files.

const element = (name, properties = {}, ...children) => {
  const made = Object.assign(document.createElement(name), properties);
  made.append(...children);
  return made;
};

// ---- The table of contents

const toc = document.querySelector("#toc");
const headings = [...document.querySelectorAll("main h2, main h3")].filter(
  (heading) => !heading.hasAttribute("data-toc-skip") && heading.closest("[id]") !== document.body,
);
if (toc && headings.length > 0) {
  const list = element("ul");
  for (const heading of headings) {
    const target = heading.id || heading.closest("[id]:not(main)")?.id;
    if (!target) continue;
    const link = element("a", { href: `#${target}`, textContent: heading.textContent.trim() });
    list.append(element("li", { className: heading.localName }, link));
  }
  toc.append(list);
}
if (!toc?.querySelector("li")) toc?.remove();

// ---- Buttons that copy code, without the output

for (const code of navigator.clipboard ? document.querySelectorAll("main pre") : []) {
  const text = code.textContent.replace(/^#>.*\n?/gm, "");
  const button = element("button", { type: "button", className: "copy", textContent: "Copy" });
  button.addEventListener("click", async () => {
    await navigator.clipboard.writeText(text);
    button.textContent = "Copied";
    setTimeout(() => (button.textContent = "Copy"), 1500);
  });
  const around = element("div", { className: "with-copy" });
  code.replaceWith(around);
  around.append(code, button);
}

// ---- The search

const search = document.querySelector("#search");
const input = search.querySelector("input");
const results = search.querySelector("ul");
const root = search.dataset.root;

// A script, because a page that is read as a file may not fetch another file.
const index = () =>
  (index.promise ??= new Promise((resolve, reject) => {
    const script = element("script", { src: `${root}search.js`, onerror: reject });
    script.onload = () => resolve(window.searchIndex);
    document.head.append(script);
  }));

// The fields of an entry, and what a word in each of them counts.
const weights = { name: 8, title: 8, heading: 6, text: 1 };

const score = (entry, words) => {
  let total = 0;
  for (const word of words) {
    let best = 0;
    for (const [field, weight] of Object.entries(weights)) {
      if (entry[field]?.toLowerCase().includes(word)) best = Math.max(best, weight);
    }
    if (best === 0) return 0;
    total += best;
  }
  // A page comes before its sections.
  return entry.heading ? total : total + 0.5;
};

const show = async () => {
  const words = input.value.toLowerCase().split(/\s+/).filter(Boolean);
  const entries = await index();
  const found = words.length === 0 ? [] : entries
    .map((entry) => [score(entry, words), entry])
    .filter(([points]) => points > 0)
    .sort(([a], [b]) => b - a)
    .slice(0, 12);
  const lines = found.map(([, entry]) => {
    const href = `${root}${entry.path}${entry.id ? `#${entry.id}` : ""}`;
    const textContent = entry.heading ? `${entry.title}: ${entry.heading}` : entry.title;
    return element("li", {}, element("a", { href, textContent }));
  });
  if (words.length > 0 && lines.length === 0) lines.push(element("li", {}, "Nothing found"));
  results.replaceChildren(...lines);
  results.hidden = lines.length === 0;
};

input.addEventListener("input", show);
search.addEventListener("submit", (event) => {
  event.preventDefault();
  results.querySelector("a")?.click();
});
search.addEventListener("keydown", (event) => {
  const stops = [input, ...results.querySelectorAll("a")];
  const step = { ArrowDown: 1, ArrowUp: -1 }[event.key];
  if (step) {
    event.preventDefault();
    stops[(stops.indexOf(document.activeElement) + step + stops.length) % stops.length].focus();
  } else if (event.key === "Escape") {
    results.hidden = true;
  }
});
document.addEventListener("click", (event) => {
  if (!search.contains(event.target)) results.hidden = true;
});
