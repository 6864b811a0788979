"""What the tests have the browser find out about how a page looks."""

from __future__ import annotations

# Whatever begins or ends outside a screen of this width.
BEYOND = """(width) => [...document.querySelectorAll("body *")]
  .filter((each) => each.checkVisibility() && !each.closest(".unseen, svg"))
  .filter((each) => each.getBoundingClientRect().right > width + 0.5
    || each.getBoundingClientRect().left < -0.5)
  .map((each) => each.outerHTML.slice(0, 90))"""
# Text that is smaller than this.
SMALL = """(least) => [...document.querySelectorAll("body *")]
  .filter((each) => each.checkVisibility() && each.innerText)
  .filter((each) => parseFloat(getComputedStyle(each).fontSize) < least)
  .map((each) => each.outerHTML.slice(0, 90))"""
# Relative luminance and contrast as WCAG 2.2 defines them.
CONTRASTS = """() => {
  const rgb = (text) => (text.match(/[\\d.]+/g) || []).map(Number);
  const luminance = ([r, g, b]) => {
    const [R, G, B] = [r, g, b].map((v) => {
      const c = v / 255;
      return c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4;
    });
    return 0.2126 * R + 0.7152 * G + 0.0722 * B;
  };
  const behind = (element) => {
    for (let at = element; at; at = at.parentElement) {
      const colour = rgb(getComputedStyle(at).backgroundColor);
      if (colour.length === 3 || colour[3] > 0) return colour;
    }
    return [255, 255, 255];
  };
  const contrast = (one, other) => {
    const [light, dark] = [luminance(one), luminance(other)].sort((a, b) => b - a);
    return (light + 0.05) / (dark + 0.05);
  };
  const found = { texts: 0, colours: 0, unreadable: [] };
  found.ground = luminance(behind(document.body));
  const check = (element, least, kind) => {
    const value = contrast(rgb(getComputedStyle(element).color), behind(element));
    found[kind] += 1;
    const about = `${value.toFixed(2)} ${element.outerHTML.slice(0, 90)}`;
    if (value < least) found.unreadable.push(about);
  };
  for (const element of document.querySelectorAll("body *")) {
    const own = [...element.childNodes].some((n) => n.nodeType === 3 && n.textContent.trim());
    if (own && element.checkVisibility() && !element.closest("svg")) check(element, 4.5, "texts");
  }
  for (const key of document.querySelectorAll(".legend .key")) {
    const value = contrast(rgb(getComputedStyle(key).color), behind(key.parentElement));
    found.colours += 1;
    if (value < 3) found.unreadable.push(`${value.toFixed(2)} ${key.outerHTML}`);
  }
  return found;
}"""
