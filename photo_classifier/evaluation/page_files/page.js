(() => {
  "use strict";
  const all = (selector, root = document) => [...root.querySelectorAll(selector)];
  const groups = all(".group"), cells = all(".matrix a"), form = document.getElementById("filter");
  const byLabel = document.getElementById("by-label"), byAnswer = document.getElementById("by-answer");
  const shown = document.getElementById("shown");

  // --- cells of the matrix and the two lists choose which groups of photos are shown
  const show = (matches, text) => {
    for (const group of groups) group.hidden = !matches(group);
    for (const part of all(".rights")) part.hidden = all(".group", part).every((group) => group.hidden);
    shown.textContent = text;
  };
  const showByLists = () => {
    const fits = (value, select) => !select.value || value === select.value;
    show((group) => fits(group.dataset.label, byLabel) && fits(group.dataset.answer, byAnswer), "");
    const n = groups.filter((group) => !group.hidden).flatMap((group) => all("figure", group)).length;
    if (byLabel.value || byAnswer.value) shown.textContent = n === 1 ? "1 photo" : n + " photos";
  };
  const showCell = () => {
    const target = document.getElementById(decodeURIComponent(location.hash.slice(1)));
    for (const cell of cells) cell.removeAttribute("aria-current");
    if (!target || !target.classList.contains("group")) return;
    byLabel.value = target.dataset.label;
    byAnswer.value = target.dataset.answer;
    const n = all("figure", target).length;
    show((group) => group === target, n === 1 ? "1 photo" : n + " photos");
    for (let part = target.closest("details"); part; part = part.parentElement.closest("details")) part.open = true;
    for (const cell of cells) if (cell.hash === location.hash) cell.setAttribute("aria-current", "true");
    target.focus({ preventScroll: true });
    form.scrollIntoView();
  };
  if (form && groups.length) {
    for (const [select, key] of [[byLabel, "label"], [byAnswer, "answer"]]) {
      const names = [...new Set(groups.map((group) => group.dataset[key]))].sort((a, b) => a.localeCompare(b));
      for (const name of names) select.add(new Option(name, name)); // without a value its spaces would be joined
      select.addEventListener("change", () => {
        for (const cell of cells) cell.removeAttribute("aria-current");
        showByLists();
      });
    }
    form.hidden = false;
    form.addEventListener("submit", (event) => event.preventDefault());
    form.addEventListener("reset", () => {
      history.replaceState(null, "", "#mistakes");
      for (const cell of cells) cell.removeAttribute("aria-current");
      show(() => true, "");
    });
    addEventListener("hashchange", showCell);
    for (const cell of cells) cell.addEventListener("click", () => { if (cell.hash === location.hash) showCell(); });
    showCell();
  }

  // --- a photo opens larger, with those beside it
  const dialog = document.getElementById("large"), picture = dialog.querySelector("img");
  const heat = dialog.querySelector(".heat"), caption = dialog.querySelector("figcaption"), original = dialog.querySelector(".original");
  const toggle = dialog.querySelector(".toggle"), heats = document.getElementById("heats");
  let photos = [], at = 0;
  const open = (n) => {
    at = (n + photos.length) % photos.length;
    const small = photos[at].querySelector("img");
    const warm = photos[at].querySelector(".heat");
    picture.src = small.src;
    heat.hidden = toggle.hidden = !warm;
    if (warm) heat.src = warm.src;
    picture.alt = small.alt.replace("Enlarge ", "");
    caption.replaceChildren(...photos[at].closest("figure").querySelector("figcaption").cloneNode(true).childNodes);
    original.href = photos[at].href;
  };
  for (const photo of all("a.photo")) {
    photo.addEventListener("click", (event) => {
      event.preventDefault();
      photos = all("a.photo").filter((other) => other.getClientRects().length);
      open(photos.indexOf(photo));
      dialog.showModal();
    });
  }
  dialog.querySelector(".previous").addEventListener("click", () => open(at - 1));
  dialog.querySelector(".following").addEventListener("click", () => open(at + 1));
  toggle.addEventListener("click", () => heats.click());
  dialog.querySelector(".close").addEventListener("click", () => dialog.close());
  dialog.addEventListener("click", (event) => { if (event.target === dialog) dialog.close(); });
  dialog.addEventListener("keydown", (event) => {
    if (event.key === "ArrowLeft") open(at - 1);
    if (event.key === "ArrowRight") open(at + 1);
  });
  dialog.addEventListener("close", () => photos[at].focus());

  // --- commands can be copied
  for (const button of all(".copy")) {
    if (!navigator.clipboard) continue;
    button.hidden = false;
    button.addEventListener("click", async () => {
      await navigator.clipboard.writeText(button.parentElement.querySelector("code").textContent);
      button.textContent = "Copied";
      setTimeout(() => { button.textContent = "Copy"; }, 2000);
    });
  }
})();
