// Figures are drawn when they come near the screen: a page with twenty of them opens at once. Plotly's take the colours
// of the page's theme, and follow it; on a narrow screen the titles of their axes shrink until they fit.
(function () {
  const waiting = new Map(); // element: the function that draws it
  const near = new IntersectionObserver(
    (entries) => entries.filter((entry) => entry.isIntersecting).forEach((entry) => draw(entry.target)),
    { rootMargin: "1000px 0px" }
  );
  function draw(element) {
    near.unobserve(element);
    const now = waiting.get(element);
    waiting.delete(element);
    if (now) now();
  }
  function later(library, name, now) {
    library[name] = (target, ...rest) =>
      new Promise((done) => {
        const element = typeof target === "string" ? document.getElementById(target) : target;
        waiting.set(element, () => done(now(target, ...rest)));
        near.observe(element);
      });
  }

  function inks(layout) {
    const style = getComputedStyle(document.documentElement);
    const update = { "font.color": style.getPropertyValue("--pst-color-text-base").trim() || "#808a98" };
    (layout.updatemenus || []).forEach((_, i) => {
      update[`updatemenus[${i}].font.color`] = "#222";
      update[`updatemenus[${i}].bgcolor`] = "#eee";
    });
    return update;
  }
  function fit(plot) {
    const box = plot.getBoundingClientRect();
    const update = {};
    plot.querySelectorAll("text[class$='title']").forEach((title) => {
      const axis = /^([xy])(\d*)title$/.exec(title.getAttribute("class"));
      const r = title.getBoundingClientRect();
      if (!axis || !r.width) return;
      const over = Math.max(box.left - r.left, r.right - box.right, box.top - r.top, r.bottom - box.bottom);
      if (over <= 0) return;
      const length = axis[1] === "x" ? r.width : r.height;
      const size = parseFloat(getComputedStyle(title).fontSize);
      update[`${axis[1]}axis${axis[2]}.title.font.size`] = Math.max(8, Math.floor((size * (length - 2 * over)) / length));
    });
    return update;
  }

  if (window.Plotly) {
    const newPlot = window.Plotly.newPlot;
    later(window.Plotly, "newPlot", (target, data, layout, ...rest) =>
      newPlot(target, data, layout, ...rest).then((plot) =>
        window.Plotly.relayout(plot, { ...inks(plot.layout), ...fit(plot) })
      )
    );
    new MutationObserver(() =>
      document
        .querySelectorAll(".js-plotly-plot")
        .forEach((plot) => window.Plotly.relayout(plot, inks(plot.layout)))
    ).observe(document.documentElement, { attributes: true, attributeFilter: ["data-theme"] });
  }
  if (window.CircuitsVis) {
    window.CircuitsVis = { ...window.CircuitsVis }; // the bundle's own cannot be written to
    later(window.CircuitsVis, "render", window.CircuitsVis.render);
  }
  window.addEventListener("beforeprint", () => [...waiting.keys()].forEach(draw));
})();
