"use strict";
for (const part of document.querySelectorAll(".boxes")) {
  const slider = part.querySelector("input");
  if (!slider) continue;
  const rects = [...part.querySelectorAll("rect[data-score]")];
  const show = () => {
    part.querySelector("output").textContent = `${slider.value} %`;
    for (const rect of rects) rect.style.display = 100 * rect.dataset.score >= slider.value ? "" : "none";
  };
  slider.addEventListener("input", show);
  show();
}
