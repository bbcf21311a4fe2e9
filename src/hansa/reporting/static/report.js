"use strict";
// Shows the values under the pointer, or under the arrow keys, of every chart that brings them.
for (const plot of document.querySelectorAll(".plot[data-hover]")) {
  const { at, head, lines } = JSON.parse(plot.dataset.hover);
  let cross = null, tip = null, current = -1;
  const element = (name, kind, text) => {
    const made = document.createElement(name);
    if (kind) made.className = kind;
    if (text !== undefined) made.textContent = text;
    return made;
  };
  const hide = () => { cross?.remove(); tip?.remove(); cross = tip = null; current = -1; };
  const show = (index) => {
    if (index === current || !at.length) return;
    hide();
    current = index;
    cross = element("div", "cross");
    tip = element("div", "tip");
    tip.append(element("b", "", head[index]));
    for (const [label, values] of lines) {
      if (!values[index]) continue;
      const row = element("span");
      row.append(element("span", "", label), element("span", "", values[index]));
      tip.append(row);
    }
    cross.style.left = tip.style.left = at[index] + "%";
    plot.append(cross, tip);
    const room = plot.clientWidth, place = room * at[index] / 100, width = tip.offsetWidth;
    const shift = place + width + 10 <= room ? 10 : Math.max(-width - 10, -place);
    tip.style.setProperty("--shift", shift + "px");
  };
  const nearest = (event) => {
    const box = plot.getBoundingClientRect();
    const place = (event.clientX - box.left) / box.width * 100;
    let best = 0;
    at.forEach((value, index) => { if (Math.abs(value - place) < Math.abs(at[best] - place)) best = index; });
    show(best);
  };
  plot.addEventListener("pointermove", nearest);
  plot.addEventListener("pointerdown", nearest);
  plot.addEventListener("pointerleave", hide);
  plot.addEventListener("blur", hide);
  plot.addEventListener("keydown", (event) => {
    const step = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
    if (event.key === "Escape") hide();
    if (!step) return;
    event.preventDefault();
    show(Math.min(at.length - 1, Math.max(0, current + step)));
  });
}
