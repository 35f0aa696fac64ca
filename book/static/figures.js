// Plotly figures follow the page's theme: text and grid take the colours of the page.
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
  function narrow() {
    if (!window.Plotly) return;
    document.querySelectorAll(".js-plotly-plot").forEach((plot) => window.Plotly.Plots.resize(plot));
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
