"use strict";
// The browser of mistakes: filters, order, keyboard, enlarging. All text goes in as text, never as markup.
(() => {
  const data = JSON.parse(document.getElementById("gallery-data").textContent);
  const root = document.getElementById("gallery");
  if (!root || !data) return;
  root.hidden = false;

  const controls = Object.fromEntries(["true", "predicted", "mark", "order"].map((n) => [n, document.getElementById("by-" + n)]));
  const tiles = document.getElementById("tiles"), count = document.getElementById("count");
  const dialog = document.getElementById("enlarged");
  const orders = {
    confidence: (a, b) => b.confidence - a.confidence,
    loss: (a, b) => (b.loss ?? Number.MAX_VALUE) - (a.loss ?? Number.MAX_VALUE),  // null: infinite
    margin: (a, b) => b.margin - a.margin,
    index: (a, b) => a.index - b.index,
  };
  const marks = {
    "": () => true,
    label: (m) => m.label,
    duplicate: (m) => m.duplicate !== null,
    cam: (m) => m.cam !== null,
  };
  let shown = [], current = 0;

  const element = (name, text, className) => {
    const made = document.createElement(name);
    if (text !== undefined) made.textContent = text;
    if (className) made.className = className;
    made.dir = "auto";  // names may run from right to left
    return made;
  };
  const percent = (share) => (100 * share).toFixed(1) + "%";
  const describe = (m) => `index ${m.index}, true ${data.classes[m.target]}, predicted ${data.classes[m.predicted]}, ${percent(m.confidence)} sure` +
    (m.label ? ", suspected label" : "") + (m.duplicate !== null ? ", also in training" : "");

  // One picture of a sheet of pictures, `width` pixels wide.
  const picture = (sheet, place, width) => {
    const made = element("div", undefined, "picture sheet-" + sheet);
    const { columns, rows, aspect } = data.sheets[sheet];
    const height = width / aspect;
    made.style.width = width + "px";
    made.style.height = height + "px";
    made.style.backgroundSize = `${columns * width}px ${rows * height}px`;
    made.style.backgroundPosition = `${-(place % columns) * width}px ${-Math.floor(place / columns) * height}px`;
    return made;
  };

  const tile = (m, place) => {
    const made = element("button", undefined, "tile");
    made.type = "button";
    made.tabIndex = place === current ? 0 : -1;
    made.setAttribute("aria-label", describe(m));
    made.append(picture("thumbnails", m.place, 72), element("span", data.classes[m.target]), element("span", "→ " + data.classes[m.predicted]));
    const flags = [m.label ? "label?" : "", m.duplicate !== null ? "in train" : ""].filter(Boolean).join(", ");
    if (flags) made.append(element("span", flags, "flag"));
    made.addEventListener("click", () => { move(place, false); enlarge(); });
    return made;
  };

  const draw = () => {
    const wanted = (select, value) => select.value === "" || Number(select.value) === value;
    shown = data.mistakes
      .filter((m) => wanted(controls.true, m.target) && wanted(controls.predicted, m.predicted) && marks[controls.mark.value](m))
      .sort((a, b) => orders[controls.order.value](a, b) || a.index - b.index);
    current = 0;
    tiles.replaceChildren(...shown.map(tile));
    count.textContent = `${shown.length} of ${data.total} mistakes` + (data.mistakes.length < data.total ? ` (${data.mistakes.length} of them have a picture)` : "");
  };

  const move = (place, focus = true) => {
    if (!shown.length) return;
    tiles.children[current].tabIndex = -1;
    current = Math.min(Math.max(place, 0), shown.length - 1);
    tiles.children[current].tabIndex = 0;
    if (focus) tiles.children[current].focus();
  };

  const inARow = () => {
    const top = tiles.children[0].offsetTop;
    const rest = [...tiles.children].findIndex((t) => t.offsetTop !== top);
    return rest === -1 ? shown.length : rest;
  };

  const labelled = (content, text) => {
    const made = element("figure");
    made.append(content, element("figcaption", text));
    return made;
  };

  const enlarge = () => {
    const m = shown[current];
    if (!m) return;
    const wide = Math.min(200, window.innerWidth - 80);
    const pictures = [labelled(picture("thumbnails", m.place, wide), "as the network got it")];
    if (m.cam !== null) {
      pictures.push(labelled(picture("predicted", m.cam, wide), m.cam_empty[0] ? "for the predicted class: no evidence" : "evidence for the predicted class"));
      pictures.push(labelled(picture("true", m.cam, wide), m.cam_empty[1] ? "for the true class: no evidence" : "evidence for the true class"));
    }
    document.getElementById("enlarged-title").replaceChildren(
      element("bdi", data.classes[m.target]), ", taken for ", element("bdi", data.classes[m.predicted]));
    document.getElementById("enlarged-pictures").replaceChildren(...pictures);
    const facts = [
      ["Index", m.index], ["From", m.origin], ["Confidence", percent(m.confidence)], ["Loss", m.loss === null ? "infinite" : m.loss.toFixed(3) + " nats"],
      ["Margin", percent(m.margin)],
      ...(m.label ? [["Suspected label", "the model is as sure of the other class as it usually is of that class's own images"]] : []),
      ...(m.duplicate !== null ? [["Also in training", m.duplicate]] : []),
    ];
    const list = document.getElementById("enlarged-facts");
    list.replaceChildren(...facts.map(([name, value]) => {
      const row = element("tr"), head = element("th", name);
      head.scope = "row";
      row.append(head, element("td", String(value)));
      return row;
    }));
    if (!dialog.open) dialog.showModal();
  };

  const step = (by) => { move(current + by, false); enlarge(); };

  tiles.addEventListener("keydown", (event) => {
    const steps = { ArrowRight: 1, ArrowLeft: -1, ArrowDown: shown.length ? inARow() : 0, ArrowUp: shown.length ? -inARow() : 0 };
    if (event.key in steps) move(current + steps[event.key]);
    else if (event.key === "Home") move(0);
    else if (event.key === "End") move(shown.length - 1);
    else return;
    event.preventDefault();
  });
  dialog.addEventListener("keydown", (event) => {
    if (event.key === "ArrowRight") step(1);
    else if (event.key === "ArrowLeft") step(-1);
    else return;
    event.preventDefault();
  });
  dialog.addEventListener("close", () => move(current));
  document.getElementById("previous").addEventListener("click", () => step(-1));
  document.getElementById("next").addEventListener("click", () => step(1));
  document.getElementById("close").addEventListener("click", () => dialog.close());
  document.getElementById("all").addEventListener("click", () => {
    controls.true.value = controls.predicted.value = controls.mark.value = "";
    draw();
  });
  for (const select of Object.values(controls)) select.addEventListener("change", draw);
  for (const cell of document.querySelectorAll("[data-true]")) {
    cell.addEventListener("click", () => {
      controls.true.value = cell.dataset.true;
      controls.predicted.value = cell.dataset.predicted;
      controls.mark.value = "";
      draw();
      document.getElementById("mistakes").scrollIntoView();
      move(0);
    });
  }
  draw();
})();
