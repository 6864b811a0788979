// Replaces the sections of the page that changed, every two seconds while somebody looks.
"use strict";

const EVERY_MS = 2000;
const PATIENCE_MS = 10000;
const main = document.getElementById("live");
const pulse = document.getElementById("pulse");
let seenAt = Date.now();

function say(state, words) {
  pulse.className = state;
  if (pulse.textContent !== words) {
    pulse.textContent = words;
  }
}

// Whoever reads what a column says, or selects text, keeps what they look at.
function inUse(section) {
  const selection = document.getSelection();
  return (
    section.querySelector(".column:hover, code:hover") !== null ||
    (selection !== null && !selection.isCollapsed && selection.containsNode(section, true))
  );
}

function show(text) {
  const fresh = new DOMParser().parseFromString(text, "text/html");
  for (const section of fresh.querySelectorAll("section")) {
    const old = document.getElementById(section.id);
    if (old === null) {
      main.append(section);
      continue;
    }
    // What somebody has opened stays open, and keeps the keyboard's focus.
    for (const opened of old.querySelectorAll("details[open]")) {
      fresh.getElementById(opened.id)?.setAttribute("open", "");
    }
    if (!inUse(old) && !old.isEqualNode(section)) {
      const focused = old.contains(document.activeElement) && document.activeElement.parentElement.id;
      old.replaceWith(section);
      if (focused) {
        document.querySelector(`#${focused} > summary`)?.focus({ preventScroll: true });
      }
    }
  }
}

async function update() {
  if (document.hidden) {
    return;
  }
  try {
    const answer = await fetch("status/live", { signal: AbortSignal.timeout(PATIENCE_MS) });
    if (!answer.ok) {
      say("lost", `the daemon answers ${answer.status}`);
      return;
    }
    show(await answer.text());
    seenAt = Date.now();
    say("live", "live");
  } catch {
    const seconds = Math.round((Date.now() - seenAt) / 1000);
    say("lost", `no answer for ${seconds} s`);
  }
}

async function follow() {
  for (;;) {
    await update();
    await new Promise((resolve) => setTimeout(resolve, EVERY_MS));
  }
}

document.addEventListener("visibilitychange", update);
say("live", "live");
follow();
