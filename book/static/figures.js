// Plotly figures follow the page's theme, text and grid take the colours of the page; on a narrow screen the titles of
// their axes shrink until they fit.
(function () {
  function ink() {
    const style = getComputedStyle(document.documentElement);
    return style.getPropertyValue("--pst-color-text-base").trim() || "#808a98";
  }
  function repaint() {
    if (!window.Plotly) return;
    document.querySelectorAll(".js-plotly-plot").forEach((plot) => {
      const update = { "font.color": ink() };
      (plot.layout.updatemenus || []).forEach((_, i) => {
        update[`updatemenus[${i}].font.color`] = "#222";
        update[`updatemenus[${i}].bgcolor`] = "#eee";
      });
      window.Plotly.relayout(plot, update);
    });
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
    if (Object.keys(update).length) window.Plotly.relayout(plot, update);
  }
  function narrow() {
    if (!window.Plotly) return;
    document.querySelectorAll(".js-plotly-plot").forEach((plot) => {
      Promise.resolve(window.Plotly.Plots.resize(plot)).then(() => fit(plot));
    });
  }
  window.addEventListener("load", () => {
    repaint();
    narrow();
    new MutationObserver(repaint).observe(document.documentElement, {
      attributes: true,
      attributeFilter: ["data-theme"],
    });
  });
})();
