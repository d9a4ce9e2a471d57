// Live parts of pages, and the verdict while somebody types. Every page works without it.
"use strict";

// Which <details> are open, and where the focus is, survive an update of a part.
function replace(part, html) {
  if (part.contains(document.activeElement) && document.activeElement.matches("input, textarea, select, button")) return;
  if (!getSelection().isCollapsed && part.contains(getSelection().anchorNode)) return;
  const open = new Set([...part.querySelectorAll("details[open][id]")].map((one) => one.id));
  const focused = part.contains(document.activeElement) ? document.activeElement.getAttribute("href") : null;
  part.innerHTML = html;
  for (const one of part.querySelectorAll("details[id]")) one.open = one.open || open.has(one.id);
  if (focused) part.querySelector(`a[href="${CSS.escape(focused)}"]`)?.focus({ preventScroll: true });
}

// A part with data-live is replaced by what its stream sends. In a tab that nobody sees the stream is closed.
function live(part) {
  let source = null;
  const follow = () => {
    source?.close();
    source = null;
    if (document.hidden) return;
    source = new EventSource(part.dataset.live);
    source.onopen = () => part.classList.remove("stale");
    source.onerror = () => part.classList.add("stale");
    source.onmessage = (event) => replace(part, JSON.parse(event.data));
  };
  document.addEventListener("visibilitychange", follow);
  addEventListener("pagehide", () => source?.close());
  follow();
}

// A form with data-verdict is judged by the server a moment after the last key.
function judge(form) {
  const result = document.querySelector("[data-result]");
  let timer = 0;
  let latest = 0;
  const changed = () => {
    clearTimeout(timer);
    timer = setTimeout(async () => {
      const number = ++latest;
      try {
        const answer = await fetch(form.dataset.verdict, { method: "POST", body: new URLSearchParams(new FormData(form)) });
        const html = await answer.text();
        if (number === latest && answer.ok) replace(result, html);
      } catch {
        // The network is away. The button "Check" says so.
      }
    }, 300);
  };
  form.addEventListener("input", (event) => event.target.name === "why" || changed());
  // Something was typed before this script ran, or the browser has restored it.
  if ([...form.querySelectorAll("textarea")].some((one) => one.value !== one.defaultValue)) changed();
}

// A button that begins something is pressed once.
for (const form of document.querySelectorAll("form[method=post]")) {
  form.addEventListener("submit", () => setTimeout(() => {
    for (const button of form.querySelectorAll("button")) button.disabled = true;
  }));
}
addEventListener("pageshow", () => {
  for (const button of document.querySelectorAll("form[method=post] button")) button.disabled = false;
});

for (const part of document.querySelectorAll("[data-live]")) live(part);
for (const form of document.querySelectorAll("[data-verdict]")) judge(form);
